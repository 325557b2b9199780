// Functions of a row by code; the codes are ops::reduce::Reduction.
const SUM: u32 = 0u;
const MEAN: u32 = 1u;
const MAX: u32 = 2u;
const MIN: u32 = 3u;
const L2: u32 = 4u;
const PROD: u32 = 5u;

// What a total starts from: a value that does not change it. `first` is a value of the row.
fn start(function: u32, first: f32) -> f32 {
    switch function {
        case MAX, MIN: { return first; }
        case PROD: { return 1.0; }
        default: { return 0.0; }
    }
}

// What a value adds to a total.
fn term(function: u32, v: f32) -> f32 {
    return select(v, v * v, function == L2);
}

// The total of two totals.
fn join(function: u32, a: f32, b: f32) -> f32 {
    switch function {
        case MAX: { return larger(a, b); }
        case MIN: { return smaller(a, b); }
        case PROD: { return a * b; }
        default: { return a + b; }
    }
}

// The result of a row of `length` values.
fn finish(function: u32, total: f32, length: u32) -> f32 {
    switch function {
        case MEAN: { return total / f32(length); }
        case L2: { return sqrt(total); }
        default: { return total; }
    }
}
