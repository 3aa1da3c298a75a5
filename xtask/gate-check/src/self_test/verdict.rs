//! Judges the results of the attacks, with all layers and without each one of them.

use std::collections::{BTreeMap, BTreeSet};

use super::attack::{Attack, Catcher};
use crate::layer::Layer;

/// The result of an attack: what caught it, and what each catcher said.
#[derive(Clone, Debug, Default)]
pub(crate) struct AttackResult {
    /// What each catcher said.
    pub(crate) caught: BTreeMap<Catcher, String>,
    /// Steps that could not be done.
    pub(crate) broken: Vec<String>,
}

impl AttackResult {
    /// The catchers without this layer. Layers run independently, so ignoring a layer's result is the same
    /// as not running it.
    fn without(&self, layer: Option<Layer>) -> BTreeSet<Catcher> {
        let gone = layer.map(Catcher::Layer);
        self.caught.keys().copied().filter(|catcher| Some(*catcher) != gone).collect()
    }
}

/// What is wrong with the outcome of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Nothing caught it.
    Passes,
    /// Anything else.
    Other(String),
}

/// What is wrong with the result without the layer `gone`.
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
        if !caught.contains(claimed) {
            wrong.push(Wrong::Other(format!("`{claimed}` claims it, and did not catch it")));
        }
    }
    let said = |catcher: &Catcher| {
        result.caught.get(catcher).is_some_and(|said| said.contains(&attack.says))
    };
    if !attack.caught_by.iter().any(|catcher| caught.contains(catcher) && said(catcher)) {
        wrong.push(Wrong::Other(format!("none of the claimed layers says `{}`", attack.says)));
    }
    if attack.only && caught.len() > 1 {
        wrong.push(Wrong::Other("more than one layer catches it".to_owned()));
    }
    wrong
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
        let caught = caught.iter().map(|(catcher, said)| (*catcher, (*said).to_owned())).collect();
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
