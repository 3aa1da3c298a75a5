//! Judges the results of the attacks, with all layers and without each one of them.

use std::collections::{BTreeMap, BTreeSet};

use super::attack::{Attack, Catcher};
use crate::layer::Layer;

const TYPES: Catcher = Catcher::Layer(Layer::Types);

/// The result of an attack: what caught it, and what each catcher said.
#[derive(Clone, Debug, Default)]
pub(crate) struct AttackResult {
    /// What each catcher said, for each of its findings.
    pub(crate) caught: BTreeMap<Catcher, Vec<String>>,
    /// Steps that could not be done.
    pub(crate) broken: Vec<String>,
}

impl AttackResult {
    /// The catchers without this layer. Layers run independently, so ignoring a layer's result is
    /// the same as not running it.
    fn without(&self, layer: Option<Layer>) -> BTreeSet<Catcher> {
        let gone = layer.map(Catcher::Layer);
        self.caught.keys().copied().filter(|catcher| Some(*catcher) != gone).collect()
    }
}

/// An error in the result of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Nothing caught it.
    Passes,
    /// Anything else.
    Other(String),
}

/// Finds the errors in the result of an attack. Ignores the result of the layer `gone`, if one is
/// given.
pub(crate) fn judge(attack: &Attack, result: &AttackResult, gone: Option<Layer>) -> Vec<Wrong> {
    let caught = result.without(gone);
    let mut wrong: Vec<Wrong> = result.broken.iter().cloned().map(Wrong::Other).collect();
    if attack.not_claimed.is_some() {
        if !caught.is_empty() {
            let what =
                "is on the list of attacks that pass, and was caught: remove it from the list";
            wrong.push(Wrong::Other(what.to_owned()));
        }
        return wrong;
    }
    if caught.is_empty() {
        wrong.push(Wrong::Passes);
    }
    for claimed in &attack.caught_by {
        match result.caught.get(claimed).filter(|_| caught.contains(claimed)) {
            None => {
                wrong.push(Wrong::Other(format!("`{claimed}` claims it, and did not catch it")));
            }
            Some(said) => wrong.extend(says_otherwise(attack, *claimed, said)),
        }
    }
    if !attack.caught_by.contains(&TYPES) && caught.contains(&TYPES) {
        let what = "`types` catches it and does not claim it: the attack is stale, or its claim";
        wrong.push(Wrong::Other(what.to_owned()));
    }
    if attack.only && caught.len() > 1 {
        wrong.push(Wrong::Other("more than one layer catches it".to_owned()));
    }
    wrong
}

/// Checks what a catcher said. Each error of a compiler must be an expected one: any other error,
/// for instance about a function that has moved, would catch the attack as well.
fn says_otherwise(attack: &Attack, catcher: Catcher, said: &[String]) -> Option<Wrong> {
    let expected = attack.says(catcher);
    let is_said = |words: &&String| said.iter().any(|said| said.contains(words.as_str()));
    if let Some(words) = expected.iter().find(|words| !is_said(words)) {
        return Some(Wrong::Other(format!("`{catcher}` does not say `{words}`")));
    }
    let is_expected = |said: &&String| expected.iter().any(|words| said.contains(words.as_str()));
    let other = said.iter().find(|said| catcher.is_compiler() && !is_expected(said))?;
    let expected = expected.join("` or `");
    Some(Wrong::Other(format!("`{catcher}` says `{other}`, expected `{expected}`")))
}

/// The attacks that get through without a layer, among those that all layers checked.
pub(crate) fn let_through(judged: &[(Attack, AttackResult)], gone: Layer) -> Vec<&str> {
    let passes = |(attack, result): &&(Attack, AttackResult)| {
        attack.is_for_all()
            && judge(attack, result, Some(gone)).contains(&Wrong::Passes)
            && !judge(attack, result, None).contains(&Wrong::Passes)
    };
    judged.iter().filter(passes).map(|(attack, _)| attack.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack(more: &str) -> Attack {
        toml::from_str(&format!("title = \"t\"\n{more}")).expect("the test's attack is valid")
    }

    fn result(caught: &[(Catcher, &str)]) -> AttackResult {
        let caught =
            caught.iter().map(|(catcher, said)| (*catcher, vec![(*said).to_owned()])).collect();
        AttackResult { caught, broken: Vec::new() }
    }

    const GRAPH: Catcher = Catcher::Layer(Layer::Graph);
    const SOURCE: Catcher = Catcher::Layer(Layer::Source);

    #[test]
    fn an_attack_that_passes_is_wrong_unless_nobody_claims_it() {
        let claimed = attack("caught_by = [\"graph\"]\nsays = \"listed\"");
        assert!(judge(&claimed, &result(&[]), None).contains(&Wrong::Passes));
        assert_eq!(judge(&claimed, &result(&[(GRAPH, "not listed")]), None), []);
        let unclaimed = attack("not_claimed = \"hostile\"");
        assert_eq!(judge(&unclaimed, &result(&[]), None), []);
        assert_ne!(judge(&unclaimed, &result(&[(GRAPH, "x")]), None), []);
    }

    #[test]
    fn another_layer_another_message_or_one_too_many_is_wrong() {
        let claimed = attack("caught_by = [\"graph\"]\nsays = \"listed\"\nonly = true");
        assert_ne!(judge(&claimed, &result(&[(SOURCE, "listed")]), None), []);
        assert_ne!(judge(&claimed, &result(&[(GRAPH, "bad")]), None), []);
        assert_ne!(judge(&claimed, &result(&[(GRAPH, "listed"), (SOURCE, "x")]), None), []);
    }

    #[test]
    fn each_claimant_says_what_is_expected_of_it() {
        let both = attack("caught_by = [\"graph\", \"source\"]\nsays = \"listed\"");
        assert_eq!(judge(&both, &result(&[(GRAPH, "not listed"), (SOURCE, "listed")]), None), []);
        assert_ne!(judge(&both, &result(&[(GRAPH, "not listed"), (SOURCE, "x")]), None), []);
        let each =
            attack("caught_by = [\"graph\", \"source\"]\nsays = { graph = \"a\", source = \"b\" }");
        assert_eq!(judge(&each, &result(&[(GRAPH, "a"), (SOURCE, "b")]), None), []);
        assert_ne!(judge(&each, &result(&[(GRAPH, "b"), (SOURCE, "b")]), None), []);
    }

    /// A stale attack is refused by the compiler as well, for another reason.
    #[test]
    fn another_error_of_the_compiler_is_wrong() {
        let attack = attack("caught_by = [\"types\"]\nsays = \"E0382\"");
        let with = |said: &[&str]| {
            let said = said.iter().map(|said| (*said).to_owned()).collect();
            let result = AttackResult { caught: [(TYPES, said)].into(), broken: Vec::new() };
            judge(&attack, &result, None)
        };
        assert_eq!(with(&["E0382: moved", "E0382: moved twice"]), []);
        assert_ne!(with(&["E0382: moved", "E0432: no such import"]), []);
    }

    #[test]
    fn an_error_of_the_compiler_that_nobody_claims_is_wrong() {
        let claimed = attack("caught_by = [\"source\"]\nsays = \"a\"");
        assert_ne!(judge(&claimed, &result(&[(SOURCE, "a"), (TYPES, "E0432")]), None), []);
    }

    #[test]
    fn a_layer_is_needed_when_an_attack_gets_through_without_it() {
        let judged = vec![
            (attack("caught_by = [\"graph\"]\nsays = \"a\"\nonly = true"), result(&[(GRAPH, "a")])),
            (
                attack("caught_by = [\"source\"]\nsays = \"a\"\nonly = true"),
                result(&[(GRAPH, "a"), (SOURCE, "a")]),
            ),
            // The other layers did not check it.
            (attack("caught_by = [\"source\"]\nsays = \"a\""), result(&[(SOURCE, "a")])),
        ];
        assert_eq!(let_through(&judged, Layer::Graph).len(), 1);
        assert!(let_through(&judged, Layer::Source).is_empty());
    }
}
