//! Tests what the scan of the source reports, and what it accepts.

use std::collections::BTreeSet;

use super::{LINTS, Mode, Scan};

fn broken(mode: Mode, text: &str) -> Vec<&'static str> {
    let parsed = syn::parse_file(text).expect("the test's source is valid");
    let mut rules: Vec<_> =
        Scan::new(mode, "lib.rs".into()).run(&parsed).iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules
}

#[test]
fn each_rule_is_broken_by_what_it_is_about() {
    let cases = [
        ("extern crate std;", "source/extern-crate"),
        ("fn a() { let _ = std::fs::write(1, 2); }", "source/std"),
        ("use std::{fs, io};", "source/std"),
        ("#[cfg(target_os = \"linux\")] fn a() {}", "source/cfg"),
        ("#[cfg(not(test))] fn a() {}", "source/cfg"),
        ("#[cfg(feature = \"x\")] fn a() {}", "source/cfg"),
        ("#[cfg_attr(unix, path = \"a.rs\")] fn a() {}", "source/cfg"),
        ("fn a() { if cfg!(debug_assertions) {} }", "source/cfg"),
        ("include!(\"a.rs\");", "source/include"),
        ("#[path = \"../a.rs\"] mod a;", "source/path-attribute"),
        ("macro_rules! a { () => {} }", "source/macro"),
        ("#[allow(dead_code)] fn a() {}", "source/lint-attribute"),
        ("fn a() { unsafe { b() } }", "source/unsafe"),
        ("unsafe impl A for B {}", "source/unsafe"),
        ("fn a() { b!(c, { unsafe { d() } }); }", "source/unsafe"),
        ("fn a() { b!(c => unsafe { d() }); }", "source/unsafe"),
        ("unsafe extern \"C\" { fn write(); }", "source/extern"),
        ("extern \"C\" fn a() {}", "source/extern"),
        ("#[unsafe(no_mangle)] fn a() {}", "source/export"),
        ("fn a() { core::arch::asm!(\"syscall\"); }", "source/asm"),
        ("static A: u8 = 0;", "source/static"),
        ("fn a(b: T) { core::mem::forget(b) }", "source/forget"),
        ("use core::mem::{self, forget as drop_it};", "source/forget"),
        ("fn a() { Box::leak(b); }", "source/forget"),
        ("struct A { out: Box<dyn Write> }", "source/object"),
        ("struct A { out: fn(u8) }", "source/object"),
        ("impl A { pub fn new(out: impl FnMut(u8)) -> Self { A } }", "source/object"),
        ("pub struct A<W: Write> { out: W }", "source/generic-device"),
        ("pub struct A<W> where W: Write { out: W }", "source/generic-device"),
        ("pub fn a<T: From<Vec<u8>>>(b: Vec<u8>) -> T { b.into() }", "source/generic-device"),
        ("pub fn a<T: PartialEq<[u8]>>(b: T) {}", "source/generic-device"),
        ("pub fn a<T: Default>() -> T where Vec<u8>: Into<T> { b() }", "source/generic-device"),
        ("pub trait A { fn b<T: From<Vec<u8>>>(&self) -> T; }", "source/generic-device"),
        ("pub trait A<T: Write> { fn b(&self, out: T); }", "source/generic-device"),
        ("pub trait A { type B: From<Vec<u8>>; }", "source/generic-device"),
        ("pub trait A { fn b(&self, out: impl FnMut(u8)); }", "source/object"),
        ("impl<T: From<Vec<u8>>> A for T { fn b() {} }", "source/generic-device"),
        ("struct A { out: Arc<u8> }", "source/shared"),
        ("struct A { out: core::cell::Cell<u8> }", "source/shared"),
        ("fn a(b: *mut u8) {}", "source/raw-pointer"),
        ("use io_gate::host::Ledger;", "source/far-side"),
        ("use io_gate::{Gate, host::Ledger};", "source/far-side"),
        ("fn a() { io_gate::host::new_gate(); }", "source/far-side"),
        ("use io_gate as g;", "source/rename"),
        ("use io_gate::*;", "source/rename"),
        ("fn a() { while !ready() {} }", "source/spin"),
        ("fn a() { loop {} }", "source/spin"),
        ("#![warn(unsafe_code)]", "source/lint-attribute"),
        ("use core::any::Any;", "source/object"),
        ("fn a() { log::logger().log(r); }", "source/logger"),
        ("#![feature(x)]", "source/crate-attribute"),
        ("pub struct A { memory: &'static mut [u8] }", "source/lent-memory"),
        ("pub enum A<'a> { B(Option<&'a mut u8>) }", "source/lent-memory"),
        ("pub struct A<T: From<u8>> { out: T }", "source/generic-device"),
        ("fn a() { log::info!(\"b\"); }", "source/logger"),
        ("use log::info;", "source/logger"),
        ("fn a() { r#log::info!(\"b\"); }", "source/logger"),
        ("fn a() { self::io_gate::host::new_gate(); }", "source/far-side"),
        ("fn a() { crate::io_gate::r#host::new_gate(); }", "source/far-side"),
        ("r#include!(\"a.rs\");", "source/include"),
        ("fn a() { panic!(\"{b}\"); }", "source/message"),
        ("fn a() { assert!(b, \"{}\", c); }", "source/message"),
        ("fn a() { panic!(\"{}\", b.c()); }", "source/message"),
        ("fn a() { assert!(b, \"{c:?}\"); }", "source/message"),
        ("fn a() { b.expect(c); }", "source/message"),
    ];
    for (text, rule) in cases {
        assert!(
            broken(Mode::Source, text).contains(&rule),
            "{text}: {:?}",
            broken(Mode::Source, text)
        );
    }
}

/// The book and the error show the example of each rule: it breaks that rule.
#[test]
fn each_example_breaks_its_rule() {
    let root = &super::lints::attributes::CRATE_ROOT.rule;
    for lint in LINTS {
        let parsed = syn::parse_file(lint.example).expect("an example is valid");
        let mut scan = Scan::new(Mode::Source, "lib.rs".into());
        if lint.rule.id == root.id {
            scan.crate_root(&parsed);
        }
        let found: Vec<_> = scan.run(&parsed).iter().map(|finding| finding.rule).collect();
        assert!(found.contains(&lint.rule.id), "{}: {found:?}", lint.example);
    }
    let names: BTreeSet<_> = LINTS.iter().map(|lint| lint.rule.id).collect();
    assert_eq!(names.len(), LINTS.len(), "two rules have one name");
}

#[test]
fn ordinary_devices_and_their_tests_break_nothing() {
    let cases = [
        "#![no_std] #![forbid(unsafe_code)] extern crate alloc; use io_gate::{Chain, Gate};",
        "#[cfg(test)] mod tests { use io_gate::host::Ledger; use super::*; static A: u8 = 0; }",
        "pub struct A { features: u64 } impl A { pub fn new(name: impl Into<String>) -> Self { A } }",
        "fn each(mut f: impl FnMut(u8)) { f(1) }",
        "trait A { type B: From<u8>; fn b(&self, f: impl FnMut(u8)); } pub trait C { fn d(&self); }",
        "struct Ring<T>(Vec<T>); impl<T: From<u8>> Ring<T> { fn a() {} } impl<T: Ord> A for Ring<T> { fn a() {} }",
        "fn a() { note::warn(\"b\", &[(\"c\", d.into())]); let e = alloc::vec![0; 4]; assert!(matches!(e, F | G), \"{{f}}\"); }",
        "struct A<'a>(core::marker::PhantomData<fn(&'a ()) -> &'a ()>);",
        "fn a() { loop { if b() { break; } } while c() { d(); } }",
        "fn a(q: &mut Q) { while q.pop().is_some() {} q.leak(); Pipe::leak(); }",
        "enum A { Any, Cell } fn a(b: A) -> bool { matches!(b, A::Any) || A::Cell == b }",
        "#![warn(missing_docs)]",
    ];
    for text in cases {
        assert_eq!(broken(Mode::Source, text), [] as [&str; 0], "{text}");
    }
}

#[test]
fn what_derives_write_is_let_be_after_expansion_and_nothing_else() {
    let derived = "#[automatically_derived] impl PartialEq for A { fn eq(&self, o: &Self) -> bool {
        let t = ::core::intrinsics::discriminant_value(self);
        match (self, o) { _ => unsafe { ::core::intrinsics::unreachable() } } } }
        const _: () = { extern crate serde as _serde; };";
    assert_eq!(broken(Mode::Expanded, derived), [] as [&str; 0]);
    let forged =
        "fn a(p: usize) { unsafe { ::core::intrinsics::unreachable(); *(p as *mut u8) = 1 } }";
    assert_eq!(broken(Mode::Expanded, forged), ["source/unsafe", "source/raw-pointer"]);
    assert_eq!(broken(Mode::Expanded, "extern crate std;"), ["source/extern-crate"]);
}

/// Fails if a recursive parser is given input with a hundred thousand levels of nesting: it would
/// overflow the stack and end the tool.
#[test]
fn what_is_nested_without_end_is_told_and_not_parsed() {
    let text = format!("fn a() -> u8 {{\n{}0{}\n}}", "(".repeat(100_000), ")".repeat(100_000));
    let (line, said) = super::parse(&text).expect_err("that is too deep");
    assert_eq!((line, said.as_str()), (2, "more than 128 brackets within each other"));
    assert!(super::parse("fn a() { ((0)) }").is_ok());
    assert_eq!(super::parse("fn a() {\n let }").expect_err("no Rust").0, 2);
}
