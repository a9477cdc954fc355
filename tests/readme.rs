//! The README says what is: its table of metrics is the daemon's.

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
