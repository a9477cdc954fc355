//! The README says what is: its table of metrics is the daemon's. So do the files for a deployment.

use undrift::shell::telemetry;

#[test]
fn the_table_of_metrics_is_that_of_the_daemon() {
    let readme = std::fs::read_to_string("README.md").expect("a README");
    for (name, kind, unit, help) in telemetry::names() {
        let row = format!("| `{name}` | {kind} | {unit} | {help} |");
        assert!(readme.contains(&row), "the README lacks the row\n{row}");
    }
    let rows = readme.lines().filter(|line| line.starts_with("| `undrift_") || line.starts_with("| `process_")).count();
    assert_eq!(rows, telemetry::names().len(), "rows of the README's table");
}

#[test]
fn every_file_for_a_deployment_is_named() {
    let readme = std::fs::read_to_string("README.md").expect("a README");
    for file in std::fs::read_dir("deploy").expect("the folder is there") {
        let path = file.expect("the folder can be read").path();
        assert!(readme.contains(&format!("`{}`", path.display())), "the README does not name {}", path.display());
    }
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_there_are() {
    let metrics: Vec<(&str, &str)> = telemetry::names().into_iter().map(|(name, kind, ..)| (name, kind)).collect();
    let is_asked_for = |name: &str| match name.strip_suffix("_bucket") {
        Some(name) => metrics.contains(&(name, "histogram")),
        None => metrics.contains(&(name, "counter")) || metrics.contains(&(name, "gauge")),
    };
    for path in ["deploy/alerts.yml", "deploy/grafana-dashboard.json"] {
        let text = std::fs::read_to_string(path).expect("a file for a deployment");
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<&str> = words.filter(|word| word.starts_with("undrift_")).collect();
        assert!(names.len() > 5, "{path} asks for {names:?}");
        names.iter().for_each(|name| assert!(is_asked_for(name), "{path}: there is no {name}"));
    }
    let dashboard = std::fs::read_to_string("deploy/grafana-dashboard.json").expect("a dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("dashboards are JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.iter().all(|panel| panel["targets"][0]["expr"].is_string())));
}

#[test]
fn systemd_does_not_start_again_what_only_a_person_can_mend() {
    let unit = std::fs::read_to_string("deploy/undrift.service").expect("a unit");
    let codes = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).expect("the unit names exit codes");
    // Another daemon is at work; the configuration.
    assert_eq!(codes, "73 78");
}
