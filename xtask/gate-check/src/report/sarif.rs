//! SARIF 2.1.0, the format in which code-scanning services take findings (OASIS, sarif-v2.1.0).

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::Looked;
use crate::finding::{Finding, Outcome};
use crate::rules;

const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// Writes the report.
pub(crate) fn write(path: &Path, looked: &[Looked]) -> Result<()> {
    super::write(path, &document(looked))
}

fn document(looked: &[Looked]) -> Value {
    let rules: Vec<Value> = rules::all()
        .map(|rule| {
            json!({
                "id": rule.id,
                "fullDescription": { "text": rule.why },
                "help": { "text": rule.instead },
                "defaultConfiguration": { "level": "error" },
                "properties": { "layer": rule.layer },
            })
        })
        .collect();
    let results: Vec<Value> =
        looked.iter().flat_map(|looked| looked.outcome.findings()).map(result).collect();
    let broken: Vec<Value> = looked
        .iter()
        .filter_map(|looked| match &looked.outcome {
            Outcome::Broken(why) => {
                let text = format!("the layer {} could not run: {why}", looked.layer);
                Some(json!({ "level": "error", "message": { "text": text } }))
            }
            Outcome::Looked(_) | Outcome::NotReached(_) => None,
        })
        .collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "cargo xtask gate",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "invocations": [{
                "executionSuccessful": broken.is_empty(),
                "toolExecutionNotifications": broken,
            }],
            "results": results,
        }],
    })
}

fn result(finding: &Finding) -> Value {
    let text = format!("{}. {} {}", finding.what, finding.why, finding.instead);
    let locations: Vec<Value> = finding
        .place
        .iter()
        .map(|place| {
            json!({ "physicalLocation": {
                "artifactLocation": { "uri": place.file.to_string_lossy() },
                "region": { "startLine": place.line.max(1), "startColumn": place.column.max(1) },
            } })
        })
        .collect();
    json!({
        "ruleId": finding.rule,
        "level": "error",
        "message": { "text": text },
        "locations": locations,
        "properties": { "layer": finding.layer },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::finding::Place;
    use crate::layer::Layer;

    #[test]
    fn every_result_names_a_rule_of_the_driver() {
        let finding = Finding::new(&rules::COMPILE, Some(Place::line("a.rs", 0)), "`std`");
        let outcome = Outcome::Looked(vec![finding.clone(), finding.seen_by(Layer::Expanded)]);
        let document = document(&[Looked { layer: Layer::Source, outcome, time: Duration::ZERO }]);
        let run = &document["runs"][0];
        let rules = run["tool"]["driver"]["rules"].as_array().expect("rules are a list");
        let results = run["results"].as_array().expect("results are a list");
        assert_eq!(results.len(), 2);
        for result in results {
            assert!(rules.iter().any(|rule| rule["id"] == result["ruleId"]));
            assert_eq!(result["locations"][0]["physicalLocation"]["region"]["startLine"], 1);
        }
    }
}
