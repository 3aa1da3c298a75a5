//! The rule against type parameters, which other code fills in.

use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{GenericParam, Generics, Signature, TypeParam, TypeParamBound, WherePredicate};

use super::{Lint, Names, objects};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static GENERIC: Lint = Lint {
    rule: Rule {
        id: "source/generic-device",
        layer: Layer::Source,
        why: "Other code fills in a type parameter of a device, perhaps with a type that writes to a file.",
        instead: "Name the type. Differences between backends belong behind a `Port`, on the far side of the gate.",
    },
    forbids: "Type parameters of public types and functions, unless their bounds are plain (`Copy`, `Into` and the like).",
    example: "pub struct Port<W: Write> { out: W }",
    is_written: true,
    names: Names::NONE,
};

/// The only bounds that a type parameter of a device's type may have: otherwise the parameter
/// brings in its user's code.
const SEALED_BOUNDS: [&str; 1] = ["EffectKind"];
/// Bounds through which no effect can be passed in: a device does not choose the arguments of their
/// methods. `From` and `PartialEq` are not among them: their methods are foreign code and take the
/// guest's bytes.
pub(in crate::source) const PLAIN_BOUNDS: [&str; 14] = [
    "Into",
    "TryInto",
    "AsRef",
    "Copy",
    "Clone",
    "Debug",
    "Display",
    "Eq",
    "Default",
    "Sized",
    "Send",
    "Sync",
    "EffectKind",
    "IntoIterator",
];

/// Checks the type parameters of a public type, which keeps their values between calls.
pub(in crate::source) fn kept(scan: &mut Scan, generics: &Generics, name: &syn::Ident) {
    parameters(scan, generics, &SEALED_BOUNDS, &format!("the public type `{name}`"));
}

/// Checks what others can pass in through the type parameters of a public function.
pub(in crate::source) fn function(scan: &mut Scan, signature: &Signature) {
    let of = format!("the public function `{}`", signature.ident);
    parameters(scan, &signature.generics, &PLAIN_BOUNDS, &of);
    conditions(scan, &signature.generics, &of);
}

/// Checks what others can pass in through a public trait: they implement it, and call its methods
/// with their own types.
pub(in crate::source) fn contract(scan: &mut Scan, item: &syn::ItemTrait) {
    let of = format!("the trait `{}`", item.ident);
    parameters(scan, &item.generics, &PLAIN_BOUNDS, &of);
    conditions(scan, &item.generics, &of);
    for item in &item.items {
        match item {
            syn::TraitItem::Fn(method) => {
                function(scan, &method.sig);
                objects::arguments(scan, &method.sig);
            }
            syn::TraitItem::Type(item) => {
                let plain = |bound: &String| PLAIN_BOUNDS.contains(&bound.as_str());
                let bound = item.bounds.iter().filter_map(bound).find(|bound| !plain(bound));
                if let Some(bound) = bound {
                    let what = format!("the type `{}` of {of} is any `{bound}`", item.ident);
                    scan.report(&GENERIC, item.span(), what);
                }
            }
            _ => {}
        }
    }
}

/// Checks an `impl` for all types, among them foreign types.
pub(in crate::source) fn blanket(scan: &mut Scan, item: &syn::ItemImpl) {
    let of_all = |parameter: &TypeParam| is_ident(&item.self_ty, &parameter.ident);
    if item.trait_.is_some() && item.generics.type_params().any(of_all) {
        parameters(scan, &item.generics, &PLAIN_BOUNDS, "an `impl` for all types");
        conditions(scan, &item.generics, "an `impl` for all types");
    }
}

fn parameters(scan: &mut Scan, generics: &Generics, plain_bounds: &[&str], of: &str) {
    for parameter in &generics.params {
        let GenericParam::Type(parameter) = parameter else { continue };
        let bounds = bounds(parameter, generics);
        let plain = |bound: &String| plain_bounds.contains(&bound.as_str());
        if bounds.is_empty() || !bounds.iter().all(plain) {
            let what = format!("{of} has the type parameter `{}`", parameter.ident);
            scan.report(&GENERIC, parameter.span(), what);
        }
    }
}

/// The bounds of a parameter, with those of the `where` clause.
fn bounds(parameter: &TypeParam, generics: &Generics) -> Vec<String> {
    let predicates = generics.where_clause.iter().flat_map(|clause| &clause.predicates);
    let of_it = predicates.filter_map(|predicate| match predicate {
        WherePredicate::Type(predicate) if is_ident(&predicate.bounded_ty, &parameter.ident) => {
            Some(&predicate.bounds)
        }
        _ => None,
    });
    parameter.bounds.iter().chain(of_it.flatten()).filter_map(bound).collect()
}

/// Checks a `where` clause. A bound on a type that is no parameter can bring in a conversion:
/// `where Vec<u8>: Into<T>`.
fn conditions(scan: &mut Scan, generics: &Generics, of: &str) {
    let parameters: Vec<_> = generics.type_params().map(|parameter| &parameter.ident).collect();
    let conditions = generics.where_clause.iter().flat_map(|clause| &clause.predicates);
    for condition in conditions.filter(|_| !parameters.is_empty()) {
        let WherePredicate::Type(condition) = condition else { continue };
        if !parameters.iter().any(|parameter| is_ident(&condition.bounded_ty, parameter)) {
            let what = format!("{of} has a condition on a type that is no parameter");
            scan.report(&GENERIC, condition.span(), what);
        }
    }
}

pub(in crate::source) fn bound(bound: &TypeParamBound) -> Option<String> {
    match bound {
        TypeParamBound::Trait(bound) => {
            bound.path.segments.last().map(|segment| segment.ident.unraw().to_string())
        }
        _ => None,
    }
}

fn is_ident(ty: &syn::Type, ident: &syn::Ident) -> bool {
    matches!(ty, syn::Type::Path(path) if path.path.is_ident(ident))
}
