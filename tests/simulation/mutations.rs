//! The list of ways to break the crate is kept up: `mutate` switches them on, and this sees to it that it can.

use std::collections::BTreeMap;
use std::path::Path;

/// What a mutation is about: where it says `file`, `in`, `before` and `after`.
#[derive(Debug, Default)]
struct Place {
    file: String,
    around: Vec<String>,
    before: String,
    after: String,
}

#[test]
fn every_mutation_applies_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    let (mut seen, mut sources) = (0, BTreeMap::new());
    let folder = std::fs::read_dir(root.join("tests/simulation/mutations")).expect("a folder");
    let mut paths: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("readable");
        for test in text.lines().filter_map(|line| line.strip_prefix("test: ")) {
            let (target, name) = test.split_once(' ').unwrap_or_default();
            let folder = root.join(if target == "lib" { "src" } else { "tests" });
            let function = format!("fn {}(", name.rsplit("::").next().unwrap_or_default());
            if !has(&folder, &function) {
                wrong.push(format!("{}: there is no test {test}", path.display()));
            }
        }
        for place in places(&text) {
            seen += 1;
            // All are written into one copy, as `mutate` does: none is to break what another names.
            let source = sources
                .entry(place.file.clone())
                .or_insert_with(|| std::fs::read_to_string(root.join(&place.file)).unwrap_or_default());
            let around = if place.around.is_empty() { place.before.clone() } else { place.around.join("\n") };
            let times = (around.matches(&place.before).count(), source.matches(&around).count());
            if times != (1, 1) {
                wrong.push(format!("{}: {place:?} is there {times:?} times", path.display()));
            }
            if place.before.ends_with(';') || place.before.contains(" => ") {
                wrong.push(format!("{}: {place:?} is no expression", path.display()));
            }
            let switched = format!("(if mutated {{ {} }} else {{ {} }})", place.after, place.before);
            *source = source.replacen(&around, &around.replacen(&place.before, &switched, 1), 1);
        }
    }
    assert!(wrong.is_empty(), "to be pointed at what has taken its place:\n{}", wrong.join("\n"));
    assert!(seen > 20, "{seen}");
}

/// Whether a file in a folder has this in it.
fn has(folder: &Path, what: &str) -> bool {
    let mut entries =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.any(|path| match path.is_dir() {
        true => has(&path, what),
        false => std::fs::read_to_string(&path).is_ok_and(|text| text.contains(what)),
    })
}

fn places(text: &str) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for line in text.lines() {
        if let Some(file) = line.strip_prefix("file: ") {
            places.push(Place { file: file.to_owned(), ..Place::default() });
        } else if let Some(place) = places.last_mut() {
            if let Some(around) = line.strip_prefix("    ") {
                place.around.push(around.to_owned());
            } else if let Some(before) = line.strip_prefix("before: ") {
                place.before = before.to_owned();
            } else if let Some(after) = line.strip_prefix("after: ") {
                place.after = after.to_owned();
            }
        }
    }
    places
}
