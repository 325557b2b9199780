// Storage type of weights and activations. Arithmetic is f32 whatever the storage.
alias elem = f32;
alias elem4 = vec4<f32>;
