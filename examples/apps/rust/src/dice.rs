//! Dice as players write them, such as `2d6`: two dice of six sides each.

use std::str::FromStr;

use serde::Serialize;

/// Some dice of one kind.
pub struct Dice {
    number: u32,
    sides: u32,
}

/// What they showed.
#[derive(Serialize)]
pub struct Roll {
    dice: String,
    throws: Vec<u32>,
    sum: u32,
}

impl FromStr for Dice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('d')
            .and_then(|(number, sides)| Some(Self { number: number.parse().ok()?, sides: sides.parse().ok()? }));
        parsed
            .filter(|dice| (1..=100).contains(&dice.number) && (1..=1000).contains(&dice.sides))
            .ok_or_else(|| format!("{text} is not of the form 2d6, with at most 100 dice of at most 1000 sides"))
    }
}

impl Dice {
    /// Throws them.
    pub fn roll(&self) -> Roll {
        let throws: Vec<_> = (0..self.number).map(|_| fastrand::u32(1..=self.sides)).collect();
        Roll { dice: format!("{}d{}", self.number, self.sides), sum: throws.iter().sum(), throws }
    }
}
