//! Data directories as a whole: copied, put back, and what their file of lives says.

use std::{fs, path::Path};

use actorum_core::lives::Content;

use super::{Lab, wait};

/// Copies a directory and what is below it. What is there already stays, unless it has the same name.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(fs::copy(&path, target).expect("a copy")),
        }
    }
}

/// Puts a copy in the place of a directory.
pub(crate) fn put_back(data: &Path, from: &Path) {
    fs::remove_dir_all(data).expect("a directory");
    copy(from, data);
}

/// Waits until nobody holds a directory that this process had opened by itself, and closed. A process that a neighbour
/// starts has the files of this one for a moment, until it becomes another program, and with them their locks.
pub(crate) fn let_go(dir: &Path) {
    for name in ["lock", "log/db"] {
        wait(&format!("{name} of {} to be let go", dir.display()), || {
            let Ok(file) = fs::File::options().read(true).write(true).open(dir.join(name)) else { return Some(()) };
            // Unlocked by hand: otherwise whoever has this file for a moment would hold it.
            file.try_lock().ok().and_then(|()| file.unlock().ok())
        });
    }
}

/// What the file of lives of a node says; nothing of the first version.
pub(crate) fn lives(lab: &Lab, id: u64) -> Option<Content> {
    let bytes = fs::read(lab.node(id).data.join("lives")).ok()?;
    rmp_serde::from_slice(bytes.get(16..)?).ok()
}

/// Waits until a node has the present life of another one on record.
pub(crate) fn met(lab: &Lab, id: u64, other: u64) {
    wait(&format!("node {id} to meet node {other}"), || {
        let present = lives(lab, other)?.own.last()?.key();
        (lives(lab, id)?.peers.get(&other)?.life.key() == present).then_some(())
    });
}
