//! Formulas as people write them: sums, products without a sign, quotients, whole powers, brackets.

use std::iter::Peekable;
use std::str::Chars;

/// The value of `formula` where names have the values that `value` gives; `None` when it is no formula, a name has no
/// value, or the result is not exact in 53 bits.
pub fn evaluate(formula: &str, value: &dyn Fn(&str) -> Option<u64>) -> Option<f64> {
    let mut parser = Parser { rest: formula.chars().peekable(), value };
    let result = parser.sum()?;
    parser.skip_space();
    let whole = parser.rest.next().is_none();
    (whole && result.is_finite() && result.abs() < EXACT).then_some(result)
}

/// From here on, whole numbers are no longer all exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    value: &'a dyn Fn(&str) -> Option<u64>,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip_space();
        self.rest.next_if_eq(&wanted).is_some()
    }

    fn sum(&mut self) -> Option<f64> {
        let mut sum = self.product()?;
        while self.take('+') {
            sum += self.product()?;
        }
        Some(sum)
    }

    fn product(&mut self) -> Option<f64> {
        let mut product = self.power()?;
        loop {
            if self.take('/') {
                product /= self.power()?;
                continue;
            }
            self.skip_space();
            match self.rest.peek() {
                Some(c) if c.is_ascii_alphanumeric() || *c == '(' => product *= self.power()?,
                _ => return Some(product),
            }
        }
    }

    fn power(&mut self) -> Option<f64> {
        let base = self.atom()?;
        if !self.take('^') {
            return Some(base);
        }
        self.skip_space();
        let exponent = self.rest.next()?.to_digit(10)?;
        Some(base.powi(exponent as i32))
    }

    fn atom(&mut self) -> Option<f64> {
        if self.take('(') {
            let inner = self.sum()?;
            return self.take(')').then_some(inner);
        }
        let first = *self.rest.peek()?;
        if first.is_ascii_digit() {
            let mut number = 0.0;
            while let Some(digit) = self.rest.next_if(char::is_ascii_digit) {
                number = 10.0 * number + f64::from(digit.to_digit(10)?);
            }
            return Some(number);
        }
        if !first.is_ascii_alphabetic() {
            return None;
        }
        let mut name = String::new();
        while let Some(letter) = self.rest.next_if(|c| c.is_ascii_alphabetic() || *c == '_') {
            name.push(letter);
        }
        (self.value)(&name).map(|value| value as f64)
    }
}

/// `formula` for a terminal: `m C^2` as `mC²`; names with an index keep their distance.
pub fn plain(formula: &str) -> String {
    let powers = formula.replace("^2", "²").replace("^3", "³");
    if formula.contains('_') {
        return powers.replace(" (", "(");
    }
    let mut text = String::new();
    let mut previous = ' ';
    for (index, c) in powers.char_indices() {
        let next = powers[index + c.len_utf8()..].chars().next().unwrap_or(' ');
        if c != ' ' || previous == '+' || next == '+' {
            text.push(c);
        }
        previous = c;
    }
    text
}

/// `formula` in LaTeX's maths.
pub fn latex(formula: &str) -> String {
    let mut text = String::new();
    let mut index = false;
    for c in formula.chars() {
        if index && !c.is_ascii_alphabetic() {
            text.push('}');
            index = false;
        }
        text.push(c);
        if c == '_' {
            text.push('{');
            index = true;
        }
    }
    if index {
        text.push('}');
    }
    format!("${text}$")
}
