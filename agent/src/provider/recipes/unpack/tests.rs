use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use lzma_rust2::{XzOptions, XzWriter};
use tar::{Builder, EntryType, Header};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// An entry of an archive: name, type, mode, and content or a link's target.
type Made<'a> = (&'a str, EntryType, u32, &'a [u8]);

const FILE: EntryType = EntryType::Regular;

fn packed(entries: &[Made<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, mode, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        // As it is: the library would refuse to write some of these.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        let content = if is_link {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content);
            &b""[..]
        } else {
            content
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xzipped(bytes: &[u8], preset: u32) -> Vec<u8> {
    let mut encoder = XzWriter::new(Vec::new(), XzOptions::with_preset(preset)).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What `zip` can hold of these entries.
fn zipped(entries: &[Made<'_>]) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, kind, mode, content) in entries {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        match kind {
            EntryType::Directory => writer.add_directory(*name, options).unwrap(),
            EntryType::Symlink => writer.add_symlink(*name, std::str::from_utf8(content).unwrap(), options).unwrap(),
            _ => {
                writer.start_file(*name, options).unwrap();
                writer.write_all(content).unwrap();
            }
        }
    }
    writer.finish().unwrap().into_inner()
}

/// What comes of it, looked at and unpacked alike; the files with their modes.
fn made(bytes: &[u8], content: &Content, limit: u64) -> Result<Vec<(String, u32, String)>, String> {
    let place = tempfile::tempdir().unwrap();
    let (from, to) = (place.path().join("file"), place.path().join("in/to"));
    fs::write(&from, bytes).unwrap();
    fs::create_dir(place.path().join("in")).unwrap();
    let looked = unpack(&from, content, limit, None).map_err(|error| error.to_string());
    assert_eq!(fs::read_dir(place.path().join("in")).unwrap().count(), 0, "to look writes nothing");
    let unpacked = unpack(&from, content, limit, Some(&to)).map_err(|error| error.to_string());
    assert_eq!(looked, unpacked);
    // Nothing beside the place, whatever the archive says.
    let beside: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 2, "{beside:?}");
    assert!(fs::read_dir(place.path().join("in")).unwrap().all(|entry| entry.unwrap().file_name() == "to"));
    unpacked?;
    let mut found = Vec::new();
    list(&to, "", &mut found);
    found.sort();
    Ok(found)
}

fn list(path: &Path, name: &str, found: &mut Vec<(String, u32, String)>) {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_symlink() {
        return found.push((name.to_owned(), 0, format!("-> {}", fs::read_link(path).unwrap().display())));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_file() {
        return found.push((name.to_owned(), mode, fs::read_to_string(path).unwrap()));
    }
    assert_eq!(mode, EXECUTABLE);
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        list(&entry.path(), &format!("{name}/{}", entry.file_name().to_str().unwrap()), found);
    }
}

fn tree(entries: &[Made<'_>]) -> Result<Vec<(String, u32, String)>, String> {
    made(&packed(entries), &Content::Tree { strip: 1 }, 1000)
}

#[test]
fn a_tree_is_unpacked_without_its_first_directory_whatever_packs_it() {
    let entries = [
        ("pax_global_header", EntryType::XGlobalHeader, 0o644, &b"11 x=y\nabc\n"[..]),
        ("node-1/", EntryType::Directory, 0o700, b""),
        ("node-1/bin/node", FILE, 0o4755 & 0o777, b"node"),
        ("./node-1/README", FILE, 0o600, b"read me"),
        ("node-1/bin/npm", EntryType::Symlink, 0o777, b"../lib/npm.js"),
        ("node-1/lib/npm.js", FILE, 0o644, b"npm"),
        ("LICENSE", FILE, 0o644, b"above it"),
    ];
    let expected = [
        ("/README", PLAIN, "read me"),
        ("/bin/node", EXECUTABLE, "node"),
        ("/bin/npm", 0, "-> ../lib/npm.js"),
        ("/lib/npm.js", PLAIN, "npm"),
    ]
    .map(|(name, mode, content)| (name.to_owned(), mode, content.to_owned()));
    let tar = packed(&entries);
    for bytes in [tar.clone(), gzipped(&tar), xzipped(&tar, 6), zipped(&entries[1..])] {
        assert_eq!(made(&bytes, &Content::Tree { strip: 1 }, 14).unwrap(), expected);
        let error = made(&bytes, &Content::Tree { strip: 1 }, 13).unwrap_err();
        assert_eq!(error, "it holds more than 13 bytes, which the recipe says");
    }
}

#[test]
fn one_file_of_an_archive_or_the_file_itself_is_a_program() {
    let member = Content::Member { strip: 1, path: "bin/x".into() };
    let entries = [("a-1/README", FILE, 0o644, &b"read me"[..]), ("a-1/bin/x", FILE, 0o644, b"program")];
    let program = vec![(String::new(), EXECUTABLE, "program".to_owned())];
    assert_eq!(made(&gzipped(&packed(&entries)), &member, 7).unwrap(), program);
    assert!(made(&packed(&entries), &member, 6).unwrap_err().contains("more than 6 bytes"));
    assert_eq!(made(b"program", &Content::File, 7).unwrap(), program);
    assert!(made(b"program", &Content::File, 6).unwrap_err().contains("more than 6 bytes"));
    assert_eq!(made(&packed(&entries[..1]), &member, 9).unwrap_err(), "it has no bin/x");
    let twice = [entries[1], entries[1]];
    assert_eq!(made(&packed(&twice), &member, 99).unwrap_err(), "bin/x: is there twice");
    let link = [("a-1/bin/x", EntryType::Symlink, 0o777, &b"y"[..])];
    assert_eq!(made(&packed(&link), &member, 99).unwrap_err(), "bin/x: is not a file");
    // What is wrong with another file of the archive is no better.
    let hostile = [entries[1], ("a-1/../../x", FILE, 0o644, b"x")];
    assert!(made(&packed(&hostile), &member, 99).unwrap_err().contains("leads out of the archive"));
}

#[test]
fn nothing_leads_out_of_the_place() {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    let good = ("a/good", FILE, 0o644, &b"x"[..]);
    let why = |entry: Made<'_>| tree(&[good, entry]).unwrap_err();
    for name in ["../x", "a/../../x", "/etc/x", "a/../x", "..", "a/.."] {
        assert!(why((name, FILE, 0o644, b"x")).contains("leads out of the archive"), "{name}");
        assert!(why((name, Directory, 0o755, b"")).contains("leads out of the archive"), "{name}");
    }
    for target in ["/etc/passwd", "..", "../x", "b/../../x", "./../x"] {
        let found = why(("a/link", Symlink, 0o777, target.as_bytes()));
        assert!(found.contains("is a link that leads out of the archive"), "{target}: {found}");
    }
    assert!(why(("a/d/link", Symlink, 0o777, b"../../x")).contains("leads out"));
    assert!(why(("a/d/link", Symlink, 0o777, b"d/../..")).contains("leads out"), "a link could be in between");
    for mode in [0o4755, 0o2755, 0o6644] {
        assert!(why(("a/x", FILE, mode, b"x")).contains("is setuid or setgid"));
    }
    for kind in [Block, Char, Fifo, Link] {
        let found = why(("a/x", kind, 0o644, b"a/good"));
        assert!(found.contains("is of a type that is not unpacked"), "{kind:?}: {found}");
    }
    // Through a link that was made before, and in the place of what is there.
    let through = [("a/l", Symlink, 0o777, &b"good"[..]), ("a/l/x", FILE, 0o644, b"x")];
    assert!(tree(&through).unwrap_err().contains("is a file or a link, and a directory as well"));
    assert!(tree(&[good, ("a/good", Symlink, 0o777, b"x")]).unwrap_err().contains("is there twice"));
    assert!(tree(&[good, ("a/good", Directory, 0o755, b"")]).unwrap_err().contains("directory as well"));
    assert_eq!(tree(&[("a/", Directory, 0o755, b"")]).unwrap_err(), "it has no files");
    assert_eq!(tree(&[]).unwrap_err(), "it has no files");
}

#[test]
fn nothing_of_a_zip_leads_out_of_the_place_either() {
    let good = ("a/good", FILE, 0o644, &b"x"[..]);
    let why = |entry: Made<'_>| made(&zipped(&[good, entry]), &Content::Tree { strip: 1 }, 1000).unwrap_err();
    for name in ["../x", "a/../../x", "/etc/x"] {
        assert!(why((name, FILE, 0o644, b"x")).contains("leads out of the archive"), "{name}");
    }
    for target in ["/etc/passwd", "../x"] {
        let found = why(("a/link", EntryType::Symlink, 0o777, target.as_bytes()));
        assert!(found.contains("is a link that leads out of the archive"), "{target}: {found}");
    }
    let long = "x".repeat(401);
    assert!(
        why(("a/link", EntryType::Symlink, 0o777, long.as_bytes())).contains("is a link to a name that is too long")
    );
    assert!(why(("a/link", EntryType::Symlink, 0o777, b"")).contains("is a link to nothing"));
    assert!(why((&format!("a/{long}"), FILE, 0o644, b"")).contains("its name is too long"));
    let through = [good, ("a/l", EntryType::Symlink, 0o777, &b"good"[..]), ("a/l/x", FILE, 0o644, b"x")];
    let why = made(&zipped(&through), &Content::Tree { strip: 1 }, 1000).unwrap_err();
    assert!(why.contains("is a file or a link, and a directory as well"), "{why}");
    // The mode of a device, behind the name in the directory at the end.
    let mut bytes = zipped(&[("a/odd", FILE, 0o640, b"x")]);
    let told = (0o100_640_u32 << 16).to_le_bytes();
    let at = bytes.windows(4).rposition(|window| window == told).unwrap();
    bytes[at..at + 4].copy_from_slice(&(0o020_666_u32 << 16).to_le_bytes());
    let why = made(&bytes, &Content::Tree { strip: 1 }, 1000).unwrap_err();
    assert!(why.contains("is of a type that is not unpacked (20000)"), "{why}");
}

#[test]
fn what_takes_more_memory_to_unpack_is_refused() {
    let content = Content::Tree { strip: 1 };
    let tar = packed(&[("a/x", FILE, 0o644, b"x")]);
    made(&xzipped(&tar, 8), &content, 1000).unwrap();
    assert!(made(&xzipped(&tar, 9), &content, 1000).unwrap_err().contains("memory"));
}

#[test]
fn a_header_of_any_size_is_refused_before_it_is_read() {
    let long = vec![b'a'; 65_537];
    let name = [("././@LongLink", EntryType::GNULongName, 0o644, &long[..]), ("a/x", FILE, 0o644, b"x")];
    assert!(tree(&name).unwrap_err().contains("its header has 65537 bytes"));
    let extension = [("x", EntryType::XHeader, 0o644, &long[..]), ("a/x", FILE, 0o644, b"x")];
    assert!(tree(&extension).unwrap_err().contains("its header has 65537 bytes"));
    let name = [("././@LongLink", EntryType::GNULongName, 0o644, &long[..401]), ("a/x", FILE, 0o644, b"x")];
    assert!(tree(&name).unwrap_err().contains("its name is too long"));
}

#[test]
fn more_files_than_anything_has_are_refused() {
    let names: Vec<String> = (0..=MAX_ENTRIES).map(|number| format!("a/{number}")).collect();
    let entries: Vec<Made<'_>> = names.iter().map(|name| (name.as_str(), FILE, 0o644, &b""[..])).collect();
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("file");
    fs::write(&from, packed(&entries)).unwrap();
    let look = |content| unpack(&from, &content, 1000, None).map_err(|error| error.to_string());
    assert_eq!(look(Content::Tree { strip: 1 }), Err("it has more than 50000 files".to_owned()));
    assert_eq!(look(Content::Member { strip: 1, path: "x".into() }), Err("it has more than 50000 files".to_owned()));
}

#[test]
fn what_is_cut_off_or_no_archive_is_an_error() {
    let whole = gzipped(&packed(&[("a/x", FILE, 0o644, &[b'x'; 900])]));
    let content = Content::Tree { strip: 1 };
    assert!(made(&whole, &content, 1000).is_ok());
    assert!(made(&whole[..whole.len() / 2], &content, 1000).is_err());
    let text = [b"x".repeat(900), (b' '..=b'~').collect()].concat();
    let entries = [("a/x", FILE, 0o644, &text[..])];
    for whole in [xzipped(&packed(&entries), 6), zipped(&entries)] {
        let text = String::from_utf8_lossy(&text);
        assert!(whole.len() < 1000, "{text}");
        assert!(made(&whole[..whole.len() * 2 / 3], &content, 9000).is_err());
        let mut changed = whole.clone();
        let middle = whole.len() / 3;
        changed[middle] ^= 1;
        assert!(made(&changed, &content, 9000).is_err());
    }
    assert!(made(&[b'x'; 2000], &content, 1000).is_err());
    assert_eq!(made(b"", &content, 1000).unwrap_err(), "it has no files");
}
