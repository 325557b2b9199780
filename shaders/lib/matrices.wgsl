// Cooperative matrices: 16 x 16 values that the 32 invocations of a subgroup hold and multiply together, f16 factors and
// f32 sums. Every invocation of the subgroup makes the same calls. Strides count what the pointer points to.
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

var<private> member: u32;   // the invocation within its subgroup, set by main
