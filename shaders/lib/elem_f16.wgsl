// Storage type of weights and activations. Arithmetic is f32 whatever the storage.
enable f16;
alias elem = f16;
alias elem4 = vec4<f16>;
