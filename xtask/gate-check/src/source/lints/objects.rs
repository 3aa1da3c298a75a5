//! The rule against code that comes in as a value: trait objects, function pointers, closures,
//! futures.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{FnArg, Signature};

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::lints::generics::{PLAIN_BOUNDS, bound};
use crate::source::scan::{Mode, Scan};

pub(crate) static DYN: Lint = Lint {
    rule: Rule {
        id: "source/object",
        layer: Layer::Source,
        why: "A trait object, a function pointer or a closure from elsewhere can contain a descriptor, and calling it is \
              an effect that the gate does not hold.",
        instead: "Take plain data. Stage each effect with a token; the far side chooses the backend by its `Port`.",
    },
    forbids: "`dyn`, types of function pointers, `impl Fn` and other open bounds in public functions, `async`, `Any` and wakers.",
    example: "struct Port { out: Box<dyn FnMut(&[u8])> }",
    is_written: false,
    names: Names { anywhere: &["Waker", "RawWaker"], ends: &[&["any", "Any"]], ..Names::NONE },
};

pub(in crate::source) fn of_trait(scan: &mut Scan, object: &syn::TypeTraitObject) {
    let bound = object.bounds.iter().find_map(bound).unwrap_or_default();
    // `derive(Debug)` writes `dyn Debug` for a struct of many fields.
    if !(scan.mode() == Mode::Expanded && bound == "Debug") {
        scan.report(&DYN, object.span(), format!("`dyn {bound}`"));
    }
}

pub(in crate::source) fn function_pointer(scan: &mut Scan, pointer: &syn::TypeBareFn) {
    scan.report(&DYN, pointer.span(), "a function pointer");
}

pub(in crate::source) fn async_block(scan: &mut Scan, expression: &syn::ExprAsync) {
    scan.report(&DYN, expression.span(), "an `async` block");
}

pub(in crate::source) fn signature(scan: &mut Scan, signature: &Signature) {
    if let Some(word) = &signature.asyncness {
        scan.report(&DYN, word.span(), format!("`async fn {}`", signature.ident));
    }
}

/// Checks what others can pass in through the arguments of a public function.
pub(in crate::source) fn arguments(scan: &mut Scan, signature: &Signature) {
    for argument in &signature.inputs {
        let FnArg::Typed(argument) = argument else { continue };
        let mut finder = ImplTrait::default();
        finder.visit_type(&argument.ty);
        if let Some(bound) = finder.bound {
            let what = format!("the public function `{}` takes any `{bound}`", signature.ident);
            scan.report(&DYN, argument.span(), what);
        }
    }
}

/// Finds the first bound of an `impl Trait` in a type that is not plain.
#[derive(Default)]
struct ImplTrait {
    bound: Option<String>,
}

impl<'ast> Visit<'ast> for ImplTrait {
    fn visit_type_impl_trait(&mut self, found: &'ast syn::TypeImplTrait) {
        let plain = |bound: &String| PLAIN_BOUNDS.contains(&bound.as_str());
        self.bound = self
            .bound
            .take()
            .or_else(|| found.bounds.iter().filter_map(bound).find(|bound| !plain(bound)));
        visit::visit_type_impl_trait(self, found);
    }
}
