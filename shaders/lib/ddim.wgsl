// What a diffusion model's output says of x_0 and of the noise; the columns are ops::ddim_step::Coefficients.
const SQRT_ALPHA: u32 = 0u;
const SQRT_ONE_MINUS_ALPHA: u32 = 1u;
const SQRT_ALPHA_PREV: u32 = 2u;
const DIRECTION: u32 = 3u;
const SIGMA: u32 = 4u;
const KNOWN_SQRT_ALPHA: u32 = 5u;
const KNOWN_SQRT_ONE_MINUS_ALPHA: u32 = 6u;
const THRESHOLD: u32 = 7u;
const COLUMNS: u32 = 8u;

// The codes are ops::ddim_step::PredictionType.
const PREDICTS_EPSILON: u32 = 0u;
const PREDICTS_V: u32 = 1u;
const PREDICTS_SAMPLE: u32 = 2u;

struct Prediction { x0: f32, epsilon: f32 }

// x: the latents x_t; a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t).
fn predict(kind: u32, output: f32, x: f32, a: f32, b: f32) -> Prediction {
    switch kind {
        case PREDICTS_V: { return Prediction(a * x - b * output, a * output + b * x); }
        case PREDICTS_SAMPLE: { return Prediction(output, (x - a * output) / b); }
        default: { return Prediction((x - b * output) / a, output); }
    }
}
