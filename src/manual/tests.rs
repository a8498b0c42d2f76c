//! The links of all pages, and the log messages that the page *operations* must name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MESSAGES: &str = include_str!("../observe/messages.rs");
const OPERATIONS: &str = include_str!("operations.md");
const RUSTDOC_LINKS: &str = include_str!("rustdoc-links.txt");

/// A Markdown file, without its code.
struct Page {
    path: PathBuf,
    /// GitHub's anchors of its headings.
    anchors: BTreeSet<String>,
    /// The targets of its inline links.
    inline: Vec<String>,
    /// The labels that its links name.
    labels: BTreeSet<String>,
    /// The targets that its reference definitions give to labels.
    definitions: BTreeMap<String, String>,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let mut page = Self {
            path,
            anchors: BTreeSet::new(),
            inline: Vec::new(),
            labels: BTreeSet::new(),
            definitions: BTreeMap::new(),
        };
        let mut fenced = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                page.line(line);
            }
        }
        assert!(!fenced, "a code block has no end in {}", page.path.display());
        page
    }

    fn line(&mut self, line: &str) {
        if line.starts_with('#')
            && let Some(heading) = line.trim_start_matches('#').strip_prefix(' ')
        {
            let first = anchor(heading);
            // What is there again is numbered.
            let anchors =
                (0..).map(|n| if n == 0 { first.clone() } else { format!("{first}-{n}") });
            self.anchors.extend(anchors.into_iter().find(|anchor| !self.anchors.contains(anchor)));
        }
        let prose: String = line.split('`').step_by(2).collect();
        if let Some((label, target)) = definition(&prose) {
            let before = self.definitions.insert(label.to_owned(), target.to_owned());
            assert_eq!(before, None, "{label} twice in {}", self.path.display());
        }
        self.inline.extend(between(&prose, "](", ')'));
        self.labels.extend(between(&prose, "][", ']'));
    }

    fn targets(&self) -> impl Iterator<Item = &String> {
        let targets = self.inline.iter().chain(self.definitions.values());
        targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
    }
}

/// What stands between these, each time.
fn between<'a>(text: &'a str, start: &'a str, end: char) -> impl Iterator<Item = String> + 'a {
    let rests = text.split(start).skip(1);
    rests.filter_map(move |rest| Some(rest.split_once(end)?.0.to_owned()))
}

/// `[label]: target`
fn definition(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix('[')?.split_once("]: ")
}

/// GitHub's anchor of a heading: lower case, spaces as hyphens, without punctuation.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let anchor: String = heading.trim().to_lowercase().chars().filter(kept).collect();
    anchor.replace(' ', "-")
}

/// The path without `.` and `..`, as a forge resolves it.
fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part.as_os_str().to_str() {
            Some("..") => assert!(resolved.pop(), "{} leads out", path.display()),
            Some(".") => {}
            _ => resolved.push(part),
        }
    }
    resolved
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Markdown files of a folder.
fn pages(folder: &str) -> Vec<Page> {
    let files = fs::read_dir(root().join(folder)).into_iter().flatten();
    let paths = files.map(|file| file.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension() == Some("md".as_ref())).collect();
    paths.sort();
    paths.into_iter().map(Page::read).collect()
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let all: Vec<Page> = ["", "src/manual", ".github"].into_iter().flat_map(pages).collect();
    let by_path: BTreeMap<_, _> = all.iter().map(|page| (resolved(&page.path), page)).collect();
    let mut broken = Vec::new();
    for page in &all {
        let folder = page.path.parent().unwrap();
        for target in page.targets() {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.path.clone() } else { folder.join(file) };
            let path = resolved(&path);
            let there = match by_path.get(&path) {
                Some(page) => anchor.is_empty() || page.anchors.contains(anchor),
                None => anchor.is_empty() && path.exists(),
            };
            if !there {
                broken.push(format!("{}: {target}", page.path.display()));
            }
        }
        let unknown = page.labels.iter().filter(|label| !page.definitions.contains_key(*label));
        broken.extend(unknown.map(|label| format!("{}: [{label}]", page.path.display())));
    }
    assert!(broken.is_empty(), "broken links: {broken:#?}");
}

#[test]
fn rustdoc_and_the_forge_lead_to_the_same_places() {
    let links: BTreeMap<_, _> = RUSTDOC_LINKS.lines().filter_map(definition).collect();
    let mut used = BTreeSet::new();
    let pages = pages("src/manual");
    assert_eq!(pages.len(), 6);
    for page in &pages {
        for target in &page.inline {
            // A file's name leads nowhere in rustdoc.
            let fits = target.starts_with('#') || target.contains("://");
            assert!(fits, "{}: {target} must be a reference", page.path.display());
        }
        for (label, target) in &page.definitions {
            let module = target.strip_prefix("../").and_then(|path| path.strip_suffix(".rs"));
            let expected = match (module, target.split_once(".md")) {
                // The documentation of a module.
                (Some(module), _) => format!("crate::{}", module.replace('/', "::")),
                (None, Some(("../../README", ""))) => "crate".to_owned(),
                // A file that a module shows.
                (None, None) if target.ends_with(".json") => {
                    format!("crate::manual::{}", target.trim_end_matches(".json"))
                }
                (None, page) => {
                    let (page, anchor) = page.unwrap();
                    format!("crate::manual::{page}{anchor}")
                }
            };
            let link = links.get(label.as_str());
            assert_eq!(link, Some(&expected.as_str()), "{}: {label}", page.path.display());
            used.insert(label.as_str());
        }
    }
    let known: BTreeSet<_> = links.into_keys().collect();
    assert_eq!(known, used, "rustdoc-links.txt has what no page uses");
}

/// The texts of the constants.
fn messages() -> Vec<String> {
    let constants = MESSAGES.split("\npub const ").skip(1).filter(|item| !item.starts_with("fn "));
    let messages = constants.map(|constant| {
        let (_, literal) = constant.split_once('"').unwrap();
        let mut text = String::new();
        let mut chars = literal.chars().peekable();
        loop {
            match chars.next().unwrap() {
                '"' => return text,
                '\\' => match chars.next().unwrap() {
                    '\n' => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                    escaped => text.push(escaped),
                },
                c => text.push(c),
            }
        }
    });
    messages.collect()
}

#[test]
fn the_log_tables_have_every_message_and_no_other() {
    // The rows that have levels beside the message, or say that it is a hint.
    let rows = OPERATIONS.lines().filter_map(|line| {
        let (message, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let (levels, _) = rest.split_once(" | ")?;
        let mut levels = levels.split(", ");
        levels.all(|level| matches!(level, "info" | "warn" | "error" | "hint")).then_some(message)
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_unstable();
    let mut messages = messages();
    messages.sort_unstable();
    assert!(messages.len() > 40, "{messages:#?}");
    assert_eq!(rows, messages);
}

#[test]
fn anchors_are_githubs() {
    for (heading, expected) in [
        ("HTTP/3", "http3"),
        ("On the host's network", "on-the-hosts-network"),
        ("`--check-delay`, and *why*", "--check-delay-and-why"),
        ("0.1.0, not released yet", "010-not-released-yet"),
    ] {
        assert_eq!(anchor(heading), expected, "{heading}");
    }
}
