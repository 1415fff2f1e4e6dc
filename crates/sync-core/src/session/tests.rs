//! A cluster in memory: one master, its replicas, and every message between them, without sockets, clocks or disks.
//!
//! The models of disk, index and drivers are in the modules below. They keep to the same rules as the real ones: a row is
//! believed while its tuple is on disk, publishing goes name by name, and an acknowledgement comes from the rows. After
//! every session the models are compared with each other, so a replica that says exact and is not is always found.

mod disk;
mod drafts;
mod faults;
mod given;
mod master;
mod push;
mod random;
mod replica;
mod scenarios;
mod stretches;

use push::World;

/// A tree with one of everything that pushes differ in.
fn grown() -> World {
    let mut world = World::new(1);
    world
        .source()
        .write("a", "alpha")
        .write("b", "beta")
        .mkdir("d")
        .write("d/one", "1")
        .write("d/same", "alpha")
        .mkdir("d/e")
        .write("d/e/deep", "deep")
        .symlink("d/link", "../a")
        .fifo("pipe")
        .write("h1", "linked")
        .hard_link("h1", "h2")
        .write("empty", "");
    world
}

/// The same, with the replica at it.
fn settled() -> World {
    let mut world = grown();
    world.push_exactly();
    world
}
