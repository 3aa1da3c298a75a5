//! Annotations for GitHub's checks: one line of a workflow command per finding.

use super::{Looked, merged};
use crate::finding::Outcome;

/// The lines.
pub(crate) fn annotations(looked: &[Looked]) -> Vec<String> {
    let findings = merged(looked).into_iter().map(|(finding, _)| {
        let place = finding.place.as_ref().map_or_else(String::new, |place| {
            let file = property(&place.file.display().to_string());
            format!("file={file},line={},col={},", place.line, place.column)
        });
        let message = format!("{}\n{}\n{}", finding.what, finding.why, finding.instead);
        format!("::error {place}title={}::{}", property(finding.rule), data(&message))
    });
    let broken = looked.iter().filter_map(|looked| match &looked.outcome {
        Outcome::Broken(why) => {
            Some(format!("::error title=gate/{}::could not run: {}", looked.layer, data(why)))
        }
        Outcome::Looked(_) | Outcome::NotReached(_) => None,
    });
    findings.chain(broken).collect()
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::finding::{Finding, Place};
    use crate::layer::Layer;
    use crate::rules;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding::new(&rules::COMPILE, Some(Place::line("a,b.rs", 3)), "`std`\n100%");
        let outcome = Outcome::Looked(vec![finding]);
        let lines = annotations(&[Looked { layer: Layer::Source, outcome, time: Duration::ZERO }]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with(
            "::error file=a%2Cb.rs,line=3,col=1,title=types/compile::`std`%0A100%25%0A"
        ));
        assert!(!lines[0].contains('\n'));
    }
}
