//! Directories that are renamed whole: which are found, and that it leads to the same tree.

use proptest::prelude::*;

use super::*;

type Want<'a> = &'a [(&'a str, Option<Entry>)];

fn changes(want: Want<'_>) -> Changes {
    want.iter().map(|(p, e)| (path(p), e.clone().map(Box::new))).collect()
}

/// What is found, as `from -> to`.
fn found_with(rows: &BTreeMap<RelPath, Row>, want: Want<'_>, holds: &[&str]) -> Vec<String> {
    let holds = Holds::new(holds.iter().map(|hold| path(hold)));
    let found = find_renames(&changes(want), rows, &holds);
    found.iter().map(|Rename { from, to }| format!("{from} -> {to}")).collect()
}

fn found(have: &[(&str, Entry)], want: Want<'_>) -> Vec<String> {
    found_with(&rows(have), want, &[])
}

fn at(sec: i64, entry: Entry) -> Entry {
    Entry { mtime: Time { sec, nsec: 0 }, ..entry }
}

#[test]
fn a_directory_with_all_it_holds_is_found() {
    let have = [("d", dir()), ("d/e", dir()), ("d/e/x", file("1")), ("d/l", entry(Kind::Fifo)), ("d-", file("2"))];
    let new = [("n", Some(dir())), ("n/e", Some(dir())), ("n/e/x", Some(file("1"))), ("n/l", Some(entry(Kind::Fifo)))];
    let gone = [("d", None), ("d/e", None), ("d/e/x", None), ("d/l", None)];
    let both = [&new[..], &gone].concat();
    assert_eq!(found(&have, &both), ["d -> n"]);
    // Nothing need be told of what goes with its directory.
    assert_eq!(found(&have, &[&new[..], &gone[..1]].concat()), ["d -> n"]);
    let other = |at: usize, what: (&'static str, Option<Entry>)| {
        let mut want = both.clone();
        want[at] = what;
        found(&have, &want)
    };
    let none: [&str; 0] = [];
    assert_eq!(other(0, ("n", Some(at(9, dir())))), ["d/e -> n/e"], "another time");
    assert_eq!(other(2, ("n/e/x", Some(file("9")))), none, "another content");
    assert_eq!(other(2, ("n/e/y", Some(file("1")))), none, "another name");
    assert_eq!(other(3, ("n/l", Some(Entry { mode: 0o600, ..entry(Kind::Fifo) }))), ["d/e -> n/e"], "another mode");
    assert_eq!(other(2, ("n/e/x", None)), none, "one less");
    assert_eq!(found(&have, &[&both[..], &[("n/z", Some(file("1")))]].concat()), ["d/e -> n/e"], "one more");
    assert_eq!(found(&have, &both[..4]), none, "a copy");
}

#[test]
fn what_is_not_a_plain_directory_here_is_not_found() {
    let have = [("d", dir()), ("d/x", file("1"))];
    let want = [("d", None), ("n", Some(dir())), ("n/x", Some(file("1")))];
    let change = |change: fn(&mut Row)| {
        let mut rows = rows(&have);
        change(rows.get_mut(&path("d/x")).unwrap());
        found_with(&rows, &want, &[])
    };
    assert_eq!(change(|_| {}), ["d -> n"]);
    let none: [&str; 0] = [];
    assert_eq!(change(|row| row.extra = true), none);
    assert_eq!(change(|row| row.mount = true), none);
    assert_eq!(change(|row| row.tuple = None), none);
    for hold in ["d", "d/x", "d/unknown", "n", "n/x", "n/unknown"] {
        assert_eq!(found_with(&rows(&have), &want, &[hold]), none, "{hold} is held");
    }
    assert_eq!(found_with(&rows(&have), &want, &["other"]), ["d -> n"]);
}

#[test]
fn what_takes_the_place_of_something_is_not_found() {
    let none: [&str; 0] = [];
    let have = [("a", dir()), ("a/x", file("1")), ("b", dir()), ("b/y", file("2"))];
    let swap = [("a/x", None), ("a/y", Some(file("2"))), ("b/x", Some(file("1"))), ("b/y", None)];
    assert_eq!(found(&have, &swap), none);
    let over_a_file = [("a", None), ("b", None), ("f", Some(dir())), ("f/x", Some(file("1")))];
    assert_eq!(found(&[&have[..], &[("f", file("3"))]].concat(), &over_a_file), none);
    // It must be gone before the file gets its name, and so before the directory gets its.
    let in_the_way = [("a", Some(file("9"))), ("n", Some(dir())), ("n/x", Some(file("1")))];
    let have = [("a", dir()), ("a/d", dir()), ("a/d/x", file("1"))];
    assert_eq!(found(&have, &in_the_way), none);
    assert_eq!(found(&have, &[&in_the_way[..], &[("a/d", None), ("a/d/x", None)]].concat()), none);
}

#[test]
fn extended_attributes_are_compared() {
    let with = |value: &str| Entry { xattrs: [(b"user.a"[..].into(), value.as_bytes().into())].into(), ..file("1") };
    let want = |value| [("d", None), ("n", Some(dir())), ("n/x", Some(with(value)))];
    let have = [("d", dir()), ("d/x", with("1"))];
    assert_eq!(found(&have, &want("1")), ["d -> n"]);
    assert_eq!(found(&have, &want("2")), Vec::<String>::new());
}

#[test]
fn a_group_of_hard_links_moves_as_a_whole_or_not_at_all() {
    let have = [("d", dir()), ("d/x", file("1")), ("d/y", linked("1", "d/x"))];
    let want = [("d", None), ("n", Some(dir())), ("n/x", Some(file("1"))), ("n/y", Some(linked("1", "n/x")))];
    assert_eq!(found(&have, &want), ["d -> n"]);
    let none: [&str; 0] = [];
    let linked_to = [&want[..], &[("z", Some(linked("1", "n/x")))]].concat();
    assert_eq!(found(&have, &linked_to), none);
    assert_eq!(found(&[&have[..], &[("z", linked("1", "d/x"))]].concat(), &[&want[..], &[("z", None)]].concat()), none);
    let first_outside = [("a", file("1")), ("d", dir()), ("d/x", linked("1", "a"))];
    let want = [("d", None), ("n", Some(dir())), ("n/x", Some(linked("1", "a")))];
    assert_eq!(found(&first_outside, &want), none);
}

#[test]
fn each_is_used_once_and_with_all_above_it_or_beneath_it() {
    let have = [("d", dir()), ("d/e", dir()), ("d/e/x", file("1")), ("g", dir()), ("g/x", file("1"))];
    let gone = [("d", None), ("g", None)];
    let new = [("a", Some(dir())), ("a/x", Some(file("1"))), ("b", Some(dir())), ("b/x", Some(file("1")))];
    // The second takes what the first left; and what lost something is whole no more.
    assert_eq!(found(&have, &[&gone[..], &new].concat()), ["d/e -> a", "g -> b"]);
    let third = [("c", Some(dir())), ("c/e", Some(dir())), ("c/e/x", Some(file("1")))];
    assert_eq!(found(&have, &[&gone[..], &new[..2], &third].concat()), ["d/e -> a", "g -> c/e"]);
    assert_eq!(found(&have, &[&gone[..], &third].concat()), ["d -> c"]);
}

#[test]
fn thousands_of_equal_directories_are_each_looked_at_once() {
    let names: Vec<[String; 4]> =
        (0..20_000).map(|i| [format!("d{i}"), format!("d{i}/x"), format!("n{i}"), format!("n{i}/x")]).collect();
    let have = names.iter().flat_map(|[d, x, ..]| [(d.as_str(), dir()), (x.as_str(), file("1"))]);
    let have: Vec<_> = have.collect();
    let want = names
        .iter()
        .flat_map(|[d, _, n, x]| [(d.as_str(), None), (n.as_str(), Some(dir())), (x.as_str(), Some(file("1")))]);
    let want: Vec<_> = want.collect();
    let (rows, changes) = (rows(&have), changes(&want));
    // Comparing each with each would take minutes.
    assert_eq!(find_renames(&changes, &rows, &Holds::default()).len(), 20_000);
}

/// What a tree is once the steps were carried out.
fn carry_out(have: &BTreeMap<RelPath, Row>, steps: &[Step]) -> BTreeMap<RelPath, Entry> {
    let mut tree: BTreeMap<RelPath, Entry> = have.iter().map(|(path, row)| (path.clone(), row.entry.clone())).collect();
    for step in steps.iter().filter(|step| step.action == Action::Delete) {
        tree.remove(&step.path);
    }
    tree.extend(steps.iter().filter_map(|step| Some((step.path.clone(), step.new.as_deref().cloned()?))));
    tree
}

/// A tree of up to 3 * 2 * 2 names, with few contents.
fn some_tree() -> impl Strategy<Value = BTreeMap<RelPath, Entry>> {
    let names = (0..3u8, 0..3u8, 0..3u8);
    proptest::collection::btree_map(names, 0..3u8, 0..9).prop_map(|picks| {
        let mut tree = BTreeMap::new();
        for ((a, b, c), content) in picks {
            let mut at = RelPath::root();
            for name in [Some(a), (b > 0).then_some(b), (b > 0 && c > 0).then_some(c)].into_iter().flatten() {
                at = at.join(format!("n{name}").as_bytes()).unwrap();
                tree.insert(at.clone(), dir());
            }
            if b > 0 {
                tree.insert(at.join(b"f").unwrap(), file(&content.to_string()));
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whole or entry by entry, the plan leads to the wanted tree, deletes as many, and needs nothing that is not there.
    #[test]
    fn renamed_or_not_it_is_the_same_tree(old in some_tree(), mut new in some_tree(), moved in any::<bool>()) {
        if moved {
            // The same with another name at its top, which is what people do.
            new = old.iter().map(|(path, entry)| {
                let text = path.display();
                (RelPath::new(text.replacen("n1", "m", 1)).unwrap(), entry.clone())
            }).collect();
        }
        let have: Vec<(String, Entry)> = old.iter().map(|(path, entry)| (path.display(), entry.clone())).collect();
        let have: Vec<(&str, Entry)> = have.iter().map(|(path, entry)| (path.as_str(), entry.clone())).collect();
        let have = rows(&have);
        let mut changes = Changes::new();
        for (path, entry) in new.iter().filter(|(path, entry)| old.get(*path) != Some(*entry)) {
            changes.insert(path.clone(), Some(Box::new(entry.clone())));
        }
        changes.extend(old.keys().filter(|path| !new.contains_key(*path)).map(|path| (path.clone(), None)));
        let touched = have.iter().filter(|(path, _)| changes.contains_key(*path));
        let mut touched: BTreeMap<_, _> = touched.map(|(path, row)| (path.clone(), row.clone())).collect();
        let holds = Holds::default();
        let mut sources: HashMap<Digest, Vec<RelPath>> = HashMap::new();
        for (path, row) in &have {
            if let Some((_, digest)) = row.entry.content() {
                sources.entry(digest).or_default().push(path.clone());
            }
        }
        let staged = |digest: &Digest| !sources.contains_key(digest);
        let situation = |rows| Situation { rows, sources: &sources, staged: &staged, holds: &holds, no_delete: false };
        let by_entry = decide(changes.clone(), situation(touched.clone()));
        let renames = find_renames(&changes, &touched, &holds);
        let all = changes.len();
        let moved = take_renamed(renames, &mut changes, &mut touched);
        let beneath: usize = moved.iter().map(|dir| 2 * dir.entries.len()).sum();
        prop_assert_eq!(all, changes.len() + beneath);
        let mut whole = decide(changes, situation(touched));
        prop_assert_eq!(whole.deletes, by_entry.deletes);
        let mut expanded: Vec<Step> = whole.steps.clone();
        expanded.extend(moved.iter().flat_map(MovedDir::steps));
        expanded.sort_by(|a, b| a.path.cmp(&b.path));
        for dir in &moved {
            prop_assert!(dir.steps().is_sorted_by(|a, b| a.path < b.path));
        }
        let paths = |steps: &[Step]| steps.iter().map(|step| step.path.clone()).collect::<Vec<_>>();
        prop_assert_eq!(paths(&expanded), paths(&by_entry.steps));
        prop_assert_eq!(carry_out(&have, &expanded), new);
        whole.rename(moved);
        prop_assert!(whole.steps.is_sorted_by(|a, b| a.path < b.path));
        prop_assert_eq!(whole.steps.len() + beneath, expanded.len() + whole.moved.len());
    }
}
