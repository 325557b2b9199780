// Functions of two values by code; the codes are ops::binary::Operator.
const ADD: u32 = 0u;
const SUB: u32 = 1u;
const MUL: u32 = 2u;
const DIV: u32 = 3u;
const MIN: u32 = 4u;
const MAX: u32 = 5u;
const POW: u32 = 6u;

fn operate(function: u32, a: f32, b: f32) -> f32 {
    switch function {
        case ADD: { return a + b; }
        case SUB: { return a - b; }
        case MUL: { return a * b; }
        case DIV: { return a / b; }
        case MIN: { return smaller(a, b); }
        case MAX: { return larger(a, b); }
        case POW: { return power(a, b); }
        default: { return a; }
    }
}
