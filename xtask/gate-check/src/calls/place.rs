//! The module that contains a function's code, read from rustc's symbol names (v0 mangling).
//!
//! A method belongs to the module of its `impl`, which may differ from the module of its type. A function written by a
//! foreign crate's macro belongs to the module that uses the macro. A closure, and an item inside of a function, belongs to
//! the function's module.

use super::name;

/// The module of a function; none for a function that is not Rust's or has a legacy mangled name.
pub(super) fn module(symbol: &str) -> Option<String> {
    let names = symbol.strip_prefix("_R")?;
    let mut reader = Reader { names: names.as_bytes(), at: 0, depth: 0 };
    match reader.path()? {
        Stands::Module(module) | Stands::Within(module) => Some(module),
        Stands::InTrait => {
            let of_trait = name::trait_path(&name::demangle(symbol))?;
            let (in_trait, _method) = of_trait.rsplit_once("::")?;
            in_trait.rsplit_once("::").map(|(module, _trait)| module.to_owned())
        }
    }
}

/// Maximum nesting of a name: the compiler makes no deeper one.
const DEEPEST: usize = 256;

/// What a path says of its module.
enum Stands {
    /// It is this module, or a type in it.
    Module(String),
    /// It is a function of this module, or within one.
    Within(String),
    /// It is a provided method of a trait: the trait's module counts.
    InTrait,
}

struct Reader<'n> {
    names: &'n [u8],
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    /// The path that begins here. The part after its module is not read.
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
            b'Y' => Some(Stands::InTrait),
            b'B' => {
                let at = self.number()?;
                Reader { names: self.names, at, depth: self.depth }.path()
            }
            _ => None,
        }
    }

    fn within(&mut self) -> Option<Stands> {
        Some(match self.path()? {
            Stands::Module(module) => Stands::Within(module),
            within => within,
        })
    }

    fn next(&mut self) -> Option<u8> {
        let next = *self.names.get(self.at)?;
        self.at += 1;
        Some(next)
    }

    /// `s` and a number, which distinguishes two items of one name.
    fn disambiguator(&mut self) -> Option<()> {
        if self.names.get(self.at) == Some(&b's') {
            self.at += 1;
            self.number()?;
        }
        Some(())
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
