//! The guide's example is the SDK's example, and the example passes the vectors that the guide shows.

#[path = "../examples/minimal.rs"]
mod minimal;

use angarium_provider::vectors::check;

const GUIDE: &str = include_str!("../../../docs/writing-a-provider.md");
const EXAMPLE: &str = include_str!("../examples/minimal.rs");
const VECTORS: &str = include_str!("../examples/vectors/minimal.json");

fn folder(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_example_passes_its_vectors() {
    check::<minimal::Acme>(folder("examples/vectors"));
}

#[test]
fn the_guide_shows_the_example_and_its_vectors() {
    assert!(
        GUIDE.contains(EXAMPLE.trim()),
        "docs/writing-a-provider.md shows another provider than examples/minimal.rs"
    );
    assert!(GUIDE.contains(VECTORS.trim()), "docs/writing-a-provider.md shows other vectors than examples/vectors");
}

#[test]
fn the_example_is_short() {
    assert!(EXAMPLE.lines().count() < 40);
}

#[test]
#[should_panic(expected = "expected {\"step\":{\"done\":[{\"code\":\"200\",\"disposition\":\"throttled\"")]
fn a_vector_that_differs_is_shown() {
    check::<minimal::Acme>(folder("tests/wrong"));
}

#[test]
#[should_panic(expected = "unknown field `expect`")]
fn a_vector_with_a_misspelt_field_is_refused() {
    check::<minimal::Acme>(folder("tests/misspelt"));
}

#[test]
#[should_panic(expected = "no golden vector in ")]
fn a_folder_without_vectors_is_a_mistake() {
    check::<minimal::Acme>(folder("src"));
}
