//! The module that contains a function's code, read from rustc's symbol names (v0 mangling).
//!
//! A method belongs to the module of its `impl`, which may differ from the module of its type. A
//! function written by a foreign crate's macro belongs to the module that uses the macro. A
//! closure, and an item inside of a function, belongs to the function's module.

use super::name;

/// The module of a function; none for a function that is not Rust's or has a legacy mangled name.
pub(super) fn module(symbol: &str) -> Option<String> {
    let names = symbol.strip_prefix("_R")?;
    match Reader::new(names.as_bytes(), 0, 0).path() {
        Some(Stands::Module(module) | Stands::Within(module)) => Some(module),
        None => unread(symbol),
    }
}

/// For a method of a type that the reader does not know: a module that is on no list, in the crate
/// of the method's trait.
fn unread(symbol: &str) -> Option<String> {
    let of_trait = name::trait_path(&name::demangle(symbol))?;
    let (of_crate, _) = of_trait.split_once("::")?;
    Some(format!("{of_crate}::{{not read}}"))
}

/// Maximum nesting of a name: the compiler makes no deeper one.
const DEEPEST: usize = 256;

/// The module of a path.
enum Stands {
    /// It is this module, or a type in it.
    Module(String),
    /// It is a function of this module, or within one.
    Within(String),
}

struct Reader<'n> {
    names: &'n [u8],
    at: usize,
    depth: usize,
}

impl<'n> Reader<'n> {
    const fn new(names: &'n [u8], at: usize, depth: usize) -> Self {
        Self { names, at, depth }
    }

    /// Reads the path that begins here. The part after its module is not read.
    fn path(&mut self) -> Option<Stands> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        match self.next()? {
            b'C' => self.identifier().map(Stands::Module),
            b'N' => {
                let is_named = self.next()? == b't';
                match self.path()? {
                    Stands::Module(parent) if is_named => {
                        let name = self.identifier()?;
                        Some(Stands::Module(format!("{parent}::{name}")))
                    }
                    Stands::Module(parent) => Some(Stands::Within(parent)),
                    within => Some(within),
                }
            }
            b'M' | b'X' => {
                self.disambiguator()?;
                self.within()
            }
            b'I' => self.within(),
            b'Y' => {
                self.skip_type()?;
                self.of_trait()
            }
            b'B' => self.earlier()?.path(),
            _ => None,
        }
    }

    /// Reads a trait's path. The methods that it provides belong to the trait's module, or to the
    /// function that contains the trait.
    fn of_trait(&mut self) -> Option<Stands> {
        match self.next()? {
            b'I' => self.of_trait(),
            b'B' => self.earlier()?.of_trait(),
            b'N' => {
                self.next()?;
                self.within()
            }
            _ => None,
        }
    }

    /// A reader at the earlier place to which the number that follows points.
    fn earlier(&mut self) -> Option<Self> {
        let at = self.number()?;
        (self.depth < DEEPEST).then(|| Self::new(self.names, at, self.depth + 1))
    }

    fn within(&mut self) -> Option<Stands> {
        Some(match self.path()? {
            Stands::Module(module) => Stands::Within(module),
            within => within,
        })
    }

    /// Skips a type, or a path.
    fn skip_type(&mut self) -> Option<()> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        match self.next()? {
            // A type of the language.
            b'a'..=b'z' => {}
            b'B' => drop(self.number()?),
            b'C' => drop(self.identifier()?),
            b'N' => {
                self.next()?;
                self.skip_type()?;
                self.identifier()?;
            }
            start @ (b'M' | b'X' | b'Y') => self.skip_of_impl(start)?,
            b'I' => {
                self.skip_type()?;
                self.until_end(Self::skip_argument)?;
            }
            b'A' => {
                self.skip_type()?;
                self.skip_constant()?;
            }
            b'S' | b'P' | b'O' => self.skip_type()?,
            b'R' | b'Q' => {
                self.numbered(b'L')?;
                self.skip_type()?;
            }
            b'T' => self.until_end(Self::skip_type)?,
            b'F' => self.skip_function()?,
            b'D' => {
                self.numbered(b'G')?;
                self.until_end(Self::skip_bound)?;
                self.numbered(b'L')?;
            }
            _ => return None,
        }
        self.depth -= 1;
        Some(())
    }

    /// Skips the rest of the path of an `impl` or of a trait's method: the place of the `impl`, the
    /// type, and the trait.
    fn skip_of_impl(&mut self, start: u8) -> Option<()> {
        if start != b'Y' {
            self.disambiguator()?;
            self.skip_type()?;
        }
        if start != b'M' {
            self.skip_type()?;
        }
        self.skip_type()
    }

    /// Skips the rest of a function's type.
    fn skip_function(&mut self) -> Option<()> {
        self.numbered(b'G')?;
        self.eats(b'U');
        if self.eats(b'K') && !self.eats(b'C') {
            self.identifier()?;
        }
        self.until_end(Self::skip_type)?;
        self.skip_type()
    }

    /// Skips a trait of a trait object, with its associated types.
    fn skip_bound(&mut self) -> Option<()> {
        self.skip_type()?;
        while self.eats(b'p') {
            self.identifier()?;
            self.skip_type()?;
        }
        Some(())
    }

    fn skip_argument(&mut self) -> Option<()> {
        if self.names.get(self.at) == Some(&b'L') {
            return self.numbered(b'L');
        }
        if self.eats(b'K') { self.skip_constant() } else { self.skip_type() }
    }

    /// Skips a constant of a simple type.
    fn skip_constant(&mut self) -> Option<()> {
        match self.next()? {
            b'p' => Some(()),
            b'B' => self.number().map(drop),
            b'a'..=b'z' => {
                while self.next()? != b'_' {}
                Some(())
            }
            _ => None,
        }
    }

    /// Skips items up to an `E`.
    fn until_end(&mut self, item: fn(&mut Self) -> Option<()>) -> Option<()> {
        while !self.eats(b'E') {
            item(self)?;
        }
        Some(())
    }

    fn eats(&mut self, letter: u8) -> bool {
        let is_next = self.names.get(self.at) == Some(&letter);
        self.at += usize::from(is_next);
        is_next
    }

    /// Skips a letter and its number, if they are there.
    fn numbered(&mut self, letter: u8) -> Option<()> {
        if self.eats(letter) { self.number().map(drop) } else { Some(()) }
    }

    fn next(&mut self) -> Option<u8> {
        let next = *self.names.get(self.at)?;
        self.at += 1;
        Some(next)
    }

    /// `s` and a number, which distinguishes two items of one name.
    fn disambiguator(&mut self) -> Option<()> {
        self.numbered(b's')
    }

    /// A base-62 number and `_`.
    fn number(&mut self) -> Option<usize> {
        let mut value: Option<usize> = None;
        loop {
            let digit = match self.next()? {
                b'_' => return Some(value.map_or(0, |value| value + 1)),
                digit @ b'0'..=b'9' => digit - b'0',
                digit @ b'a'..=b'z' => digit - b'a' + 10,
                digit @ b'A'..=b'Z' => digit - b'A' + 36,
                _ => return None,
            };
            value = Some(value.unwrap_or(0).checked_mul(62)?.checked_add(usize::from(digit))?);
        }
    }

    fn identifier(&mut self) -> Option<String> {
        self.disambiguator()?;
        // Non-ASCII letters are encoded: different names stay different.
        if self.names.get(self.at) == Some(&b'u') {
            self.at += 1;
        }
        let mut len = 0_usize;
        while let Some(digit) = self.names.get(self.at).filter(|digit| digit.is_ascii_digit()) {
            len = len.checked_mul(10)?.checked_add(usize::from(digit - b'0'))?;
            self.at += 1;
            // A length has no leading zero.
            if len == 0 {
                break;
            }
        }
        if self.names.get(self.at) == Some(&b'_') {
            self.at += 1;
        }
        let name = self.names.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        String::from_utf8(name.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_stands_where_it_is_written() {
        let places = [
            // `a::link::free`, a closure in it, and a function in it.
            ("_RNvNtCs4Q2Qx8jI5j6_1a4link4free", "a::link"),
            ("_RNCNvNtCs4Q2Qx8jI5j6_1a4link4free0B5_", "a::link"),
            ("_RNvNvNtCs4Q2Qx8jI5j6_1a4link4free5inner", "a::link"),
            // `<a::link::S>::far`, and `<a::link::S as Display>::fmt`, in `a::link::k`.
            ("_RNvMNtNtCs4Q2Qx8jI5j6_1a4link1kNtB4_1S3far", "a::link::k"),
            (
                "_RNvXs_NtNtCs4Q2Qx8jI5j6_1a4link1kNtB6_1SNtNtCsgEmfK2I1SDS_4core3fmt7Display3fmt",
                "a::link::k",
            ),
            // `<a::link::S as a::link::k::T>::prov`, which the trait provides.
            ("_RNvYNtNtCs4Q2Qx8jI5j6_1a4link1SNtNtB4_1k1T4provB6_", "a::link::k"),
            // The same method of `T<u8>`, for `&[[u8; 4]]`, for `(fn(&u8) -> u8, *const str)`, and
            // for `dyn Iterator<Item = u8>`.
            ("_RNvYRSAhj4_INtNtNtCs4Q2Qx8jI5j6_1a4link1k1ThE4provB6_", "a::link::k"),
            ("_RNvYTFG_RL0_hEhPeENtNtNtCs4Q2Qx8jI5j6_1a4link1k1T4provB6_", "a::link::k"),
            (
                "_RNvYDNtNtCsgEmfK2I1SDS_4core4iter8Iteratorp4ItemhEL_NtNtNtCs4Q2Qx8jI5j6_1a4link1k1T4provB6_",
                "a::link::k",
            ),
            // A trait within the function `a::link`, which is no module.
            ("_RNvYShNtNvCs4Q2Qx8jI5j6_1a4link1T4provB6_", "a"),
            // A method for a type with a constant that the reader does not read.
            ("_RNvYINtCs4Q2Qx8jI5j6_1a1SKRe61_ENtNtNtB5_4link1k1T4provB5_", "a::{not read}"),
            // A foreign function with a closure of `a`'s.
            (
                "_RINvNtCsgEmfK2I1SDS_4core4hint9black_boxRNCNvNtCs4Q2Qx8jI5j6_1a4link4free0EBJ_",
                "core::hint",
            ),
        ];
        for (symbol, expected) in places {
            assert_eq!(module(symbol).as_deref(), Some(expected), "{symbol}");
        }
        assert_eq!(module("memcpy"), None);
    }
}
