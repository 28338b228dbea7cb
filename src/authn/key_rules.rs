//! Whether a key that was made elsewhere is strong enough to be taken in.
//!
//! The form is the one of S0: at least 16 characters of at least three classes. Form says little, so two more rules
//! follow: the key is not one that a document has published, and guessing it takes about 2^60 attempts or more when the
//! one who guesses tries words, repeats and neighbours first.

use super::published::{PUBLISHED, ROWS, WORDS};

/// Fewest characters.
pub(crate) const MIN_LENGTH: usize = 16;
/// Most characters.
pub(crate) const MAX_LENGTH: usize = 512;
/// Fewest classes: capital letters, small letters, digits, and everything else.
const MIN_CLASSES: u32 = 3;
/// Least that guessing must cost, in bits.
pub(crate) const MIN_BITS: u32 = 60;

/// What a sound key is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strength {
    /// How many characters it has.
    pub(crate) length: usize,
    /// How many of the four classes it has.
    pub(crate) classes: u32,
    /// About how many bits it takes to guess it.
    pub(crate) bits: u32,
}

/// Why a key is not taken. It repeats nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WeakKey {
    /// It is short.
    #[error("has {length} characters; at least {MIN_LENGTH} are needed")]
    TooShort {
        /// How many it has.
        length: usize,
    },
    /// It is long.
    #[error("has {length} characters; at most {MAX_LENGTH} are taken")]
    TooLong {
        /// How many it has.
        length: usize,
    },
    /// It cannot stand in a header as it is.
    #[error("has a blank, a control character or one outside ASCII at place {place}")]
    Character {
        /// Where, from 1.
        place: usize,
    },
    /// Its characters are too much alike.
    #[error(
        "has {classes} of the classes capital letters, small letters, digits and others; {MIN_CLASSES} are needed"
    )]
    Classes {
        /// How many it has.
        classes: u32,
    },
    /// It would be taken for one of the operator's own.
    #[error("begins with pcl_ as keys of the operator do, which need no import")]
    Reserved,
    /// A document shows it.
    #[error("is, or holds, an example that a document has published")]
    Published,
    /// It is made of words, repeats or neighbours.
    #[error("is guessed too easily: about {bits} bits, and {MIN_BITS} are needed")]
    Guessable {
        /// What guessing costs.
        bits: u32,
    },
}

/// Judges a key that was made elsewhere.
///
/// # Errors
/// [`WeakKey`] says which rule it breaks.
pub(crate) fn check(key: &str) -> Result<Strength, WeakKey> {
    let classes = form(key)?;
    if is_published(key) {
        return Err(WeakKey::Published);
    }
    if key.starts_with("pcl_") {
        return Err(WeakKey::Reserved);
    }
    match bits(key) {
        bits @ MIN_BITS.. => Ok(Strength { length: key.len(), classes, bits }),
        bits => Err(WeakKey::Guessable { bits }),
    }
}

/// The rule of S0 alone. Gives the number of classes.
fn form(key: &str) -> Result<u32, WeakKey> {
    if let Some(place) = key.chars().position(|c| !c.is_ascii_graphic()) {
        return Err(WeakKey::Character { place: place + 1 });
    }
    let length = key.len();
    if length < MIN_LENGTH {
        return Err(WeakKey::TooShort { length });
    }
    if length > MAX_LENGTH {
        return Err(WeakKey::TooLong { length });
    }
    let classes: [fn(&u8) -> bool; 4] =
        [u8::is_ascii_uppercase, u8::is_ascii_lowercase, u8::is_ascii_digit, u8::is_ascii_punctuation];
    match classes.iter().filter(|class| key.bytes().any(|byte| class(&byte))).count() as u32 {
        classes @ MIN_CLASSES.. => Ok(classes),
        classes => Err(WeakKey::Classes { classes }),
    }
}

/// Whether a published value is the key, a part of it, or the key a part of one. Short ones count only as a whole: the
/// estimate deals with what is added to them.
pub(crate) fn is_published(key: &str) -> bool {
    let shows = |example: &str| example.contains(key) || example.len() >= 12 && key.contains(example);
    PUBLISHED.iter().any(|example| shows(example))
}

/// About how many bits it takes to guess a text: the cheapest way to write it as a row of single characters, words,
/// repeats and runs of neighbours.
fn bits(key: &str) -> u32 {
    let text = key.as_bytes();
    let single = alphabet(text).log2();
    let repeats = repeats(text);
    // cost[i] is the cheapest way to write the first i characters.
    let mut cost = vec![0.0_f64];
    for end in 1..=text.len() {
        let mut best = cost[end - 1] + character(text, end - 1, single);
        for (start, before) in cost.iter().enumerate() {
            let length = end - start;
            if length >= 3 && length <= repeats[start] {
                best = best.min(before + (start as f64 + 1.0).log2() + (length as f64).log2());
            }
            if let Some(bits) = pattern(&text[start..end], single) {
                best = best.min(before + bits);
            }
        }
        cost.push(best);
    }
    cost[text.len()].floor() as u32
}

/// For each place, how many characters from there on stand somewhere before, overlapping or not.
fn repeats(text: &[u8]) -> Vec<usize> {
    let mut longest = vec![0; text.len() + 1];
    // common[j] is what the texts from j and from the place below have in common.
    let mut below = vec![0; text.len() + 1];
    for place in (0..text.len()).rev() {
        let mut common = vec![0; text.len() + 1];
        for earlier in 0..place {
            if text[earlier].eq_ignore_ascii_case(&text[place]) {
                common[earlier] = below[earlier + 1] + 1;
            }
        }
        longest[place] = common[..place].iter().copied().max().unwrap_or(0);
        below = common;
    }
    longest
}

/// What a character costs by itself.
fn character(text: &[u8], at: usize, single: f64) -> f64 {
    // Whoever separates words does it with the same character again.
    let separates = text[at].is_ascii_punctuation() && text[..at].contains(&text[at]);
    match (separates, is_wordlike(text, at)) {
        (true, _) => 2.0,
        (false, true) => 2.6,
        (false, false) => single,
    }
}

/// What a part costs as a whole, if it is anything as a whole.
fn pattern(part: &[u8], single: f64) -> Option<f64> {
    let length = part.len();
    if !(3..=36).contains(&length) {
        return None;
    }
    if is_row(part) {
        return Some(single + (length as f64).log2() + 1.0);
    }
    if length == 4
        && (part.starts_with(b"19") || part.starts_with(b"20"))
        && part.iter().all(u8::is_ascii_digit)
    {
        return Some(7.0);
    }
    is_word(part).then_some(10.0)
}

/// Whether it is a run along a row of a keyboard or an alphabet, in either direction.
fn is_row(part: &[u8]) -> bool {
    let lower = part.to_ascii_lowercase();
    let backwards: Vec<u8> = lower.iter().rev().copied().collect();
    let within = |row: &[u8], run: &[u8]| row.windows(run.len()).any(|window| window == run);
    ROWS.iter().any(|row| within(row.as_bytes(), &lower) || within(row.as_bytes(), &backwards))
}

/// Whether it is a word that people build keys of, however it is written.
fn is_word(part: &[u8]) -> bool {
    let plain = |byte: &u8| match byte {
        b'0' => b'o',
        b'1' | b'!' => b'i',
        b'3' => b'e',
        b'4' | b'@' => b'a',
        b'5' | b'$' => b's',
        b'7' => b't',
        other => other.to_ascii_lowercase(),
    };
    let plain: Vec<u8> = part.iter().map(plain).collect();
    WORDS.iter().any(|word| word.as_bytes() == plain)
}

/// Whether a character stands in a run of letters that reads like a word: four or more, with vowels all along.
fn is_wordlike(text: &[u8], at: usize) -> bool {
    if !text[at].is_ascii_alphabetic() {
        return false;
    }
    // A capital begins a run, unless the whole run is of capitals.
    let joins = |i: usize| {
        text[i - 1].is_ascii_alphabetic()
            && text[i].is_ascii_alphabetic()
            && !(text[i].is_ascii_uppercase() && text[i - 1].is_ascii_lowercase())
            && !(text[i].is_ascii_lowercase()
                && i >= 2
                && text[i - 1].is_ascii_uppercase()
                && text[i - 2].is_ascii_alphabetic())
    };
    let start = (1..=at).rev().find(|i| !joins(*i)).unwrap_or(0);
    let end = (at + 1..text.len()).find(|i| !joins(*i)).unwrap_or(text.len());
    let run = &text[start..end];
    let vowel = |byte: &u8| b"aeiouy".contains(&byte.to_ascii_lowercase());
    let vowels = run.iter().filter(|byte| vowel(byte)).count();
    let crowded = run.windows(4).any(|window| !window.iter().any(vowel));
    run.len() >= 4 && vowels * 4 >= run.len() && !crowded
}

/// From how many characters each one seems to be chosen.
fn alphabet(text: &[u8]) -> f64 {
    let has = |class: fn(&u8) -> bool| text.iter().any(class);
    let letters = text.iter().filter(|byte| byte.is_ascii_alphabetic());
    let hexadecimal = letters.clone().all(u8::is_ascii_hexdigit);
    let per_case = if hexadecimal { 6.0 } else { 26.0 };
    let mut size = 0.0;
    for (class, characters) in [
        (u8::is_ascii_uppercase as fn(&u8) -> bool, per_case),
        (u8::is_ascii_lowercase, per_case),
        (u8::is_ascii_digit, 10.0),
    ] {
        size += if has(class) { characters } else { 0.0 };
    }
    // Others are seldom chosen from all thirty-two: people take two or three, separators are one.
    let mut others: Vec<u8> = text.iter().copied().filter(u8::is_ascii_punctuation).collect();
    others.sort_unstable();
    others.dedup();
    size + (4.0 * others.len() as f64).min(32.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_published_valid_examples_have_the_form_and_are_refused_all_the_same() {
        for (key, classes) in
            [("Abc123!@#Xyz789!@#", 4), ("Abc123Xyz789Abc123", 3), ("ABC123!@#XYZ789!@#", 3)]
        {
            assert_eq!(form(key), Ok(classes), "{key}");
            assert_eq!(check(key), Err(WeakKey::Published), "{key}");
        }
    }

    #[test]
    fn the_published_invalid_examples_are_refused_for_their_form() {
        assert_eq!(check("Abc123!@#"), Err(WeakKey::TooShort { length: 9 }));
        assert_eq!(check("abcdefgh12345678"), Err(WeakKey::Classes { classes: 2 }));
        assert_eq!(check("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), Err(WeakKey::Classes { classes: 1 }));
    }

    #[test]
    fn every_published_value_is_refused_also_as_a_part() {
        for example in PUBLISHED {
            assert!(check(example).is_err(), "{example}");
            assert!(check(&format!("{example}Q9")).is_err(), "{example} and two more");
            if example.len() >= MIN_LENGTH {
                let dressed = format!("Zx9!kQ-4mB7(vT2;{example}");
                assert_eq!(check(&dressed), Err(WeakKey::Published), "{dressed}");
            }
        }
        let token = PUBLISHED[7..10].join(".");
        assert_eq!(check(&token), Err(WeakKey::Published));
    }

    #[test]
    fn keys_that_are_easily_guessed_are_refused_whatever_their_form() {
        for key in [
            "Password12345678!",
            "P@ssw0rdP@ssw0rd1!",
            "Aa1!Aa1!Aa1!Aa1!Aa1!",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaB1",
            "Qwertyuiop123456!",
            "Admin-Secret-Key-2026",
            "Kubernetes-Prod-Token-01",
            "Summer2026!Summer2026!",
            "Abcdefghijklmnop123!",
            "1qaz2wsx3EDC4rfv!",
            "Correct-Horse-Battery-Staple-1",
        ] {
            assert!(matches!(check(key), Err(WeakKey::Guessable { .. })), "{key}: {:?}", check(key));
        }
    }

    #[test]
    fn keys_that_generators_make_are_taken() {
        for key in [
            "Zx9!kQ-4mB7(vT2;",
            "sk-proj-9fK2mQx7Lw4ZtB8vRc3N",
            "ghx_16C7e42F292c6912E7710c838347Ae178B4a",
            "7f3c1a9e-5b2d-4c8f-a6e0-9d4b3f2c1a7E",
            "dGhpcyBpcyBub3QgYSBrZXk3Pz8/Zm9v",
        ] {
            assert!(check(key).is_ok(), "{key}: {:?}", check(key));
        }
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_named_by_its_place() {
        assert_eq!(check("Zx9!kQ-4 mB7(vT2;"), Err(WeakKey::Character { place: 9 }));
        assert_eq!(check("Zx9!kQ-4mB7(vT2;\n"), Err(WeakKey::Character { place: 17 }));
        assert_eq!(check("Zx9!kQ-4mB7(vTé2;"), Err(WeakKey::Character { place: 15 }));
        assert_eq!(check(&"Aa1".repeat(171)), Err(WeakKey::TooLong { length: 513 }));
        assert_eq!(check("pcl_Zx9!kQ-4mB7(vT2;"), Err(WeakKey::Reserved));
    }

    proptest! {
        #[test]
        fn random_keys_are_taken(key in "[A-Za-z0-9]{24}", end in "[A-Z][a-z][0-9]") {
            let key = key + &end;
            prop_assert!(check(&key).is_ok(), "{} {:?}", key, check(&key));
        }

        #[test]
        fn judging_never_panics(key in "\\PC{0,40}") {
            let _ = check(&key);
        }

        #[test]
        fn nothing_becomes_strong_by_repeating_it(seed in "[!-~]{1,6}", times in 3_usize..85) {
            prop_assert!(check(&seed.repeat(times)).is_err());
        }
    }
}
