// Cooperative matrices of 8 x 8 values, f16 factors and f32 sums, in place of lib/matrices.wgsl. Strides count scalars.
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;

var<private> member: u32;   // the invocation within its subgroup, set by main
