// Storage type of weights and activations, for kernels that multiply by cooperative matrices: these are f16.
enable f16;
enable wgpu_cooperative_matrix;
alias elem = f16;
alias elem4 = vec4<f16>;
