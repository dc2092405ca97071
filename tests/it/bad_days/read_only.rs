//! The place can be read but not written.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    bad_days::{address, among_own_mounts, not_tested, refusal, seeded},
    process::{BINARY, through},
};

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The binary as somebody whom permissions stop. That is anybody but root, who becomes nobody for it. `None`, said
/// aloud, where that does not work either.
fn without_privileges(directory: &Path) -> Option<Command> {
    let probe = directory.join("probe");
    fs::write(&probe, "").unwrap();
    allow(&probe, 0o444);
    let ways: [&[&str]; 2] = [&["env"], &["unshare", "--user"]];
    let way = ways.into_iter().find(|way| {
        let mut command = Command::new(way[0]);
        command.args(&way[1..]).args(["sh", "-c", "! echo >>\"$0\""]).arg(&probe).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    fs::remove_file(&probe).unwrap();
    let Some(way) = way else {
        not_tested("what permissions stop: this user may write everywhere");
        return None;
    };
    let mut command = through(Command::new(way[0]));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).args(&way[1..]).arg(BINARY).arg("--demo");
    Some(command)
}

#[tokio::test]
async fn what_this_user_may_not_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = seeded(directory.path()).await;
    let before = fs::read(&file).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let Some(_) = without_privileges(scratch.path()) else { return };
    let refuse = |file: &Path| {
        let mut command = without_privileges(scratch.path()).unwrap();
        command.env("DATABASE_URL", address(file));
        let said = refusal(command, file);
        assert!(said.contains("Let DATABASE_URL name a place that this user may write to"), "{said}");
        said
    };
    allow(&file, 0o444);
    assert!(refuse(&file).contains("it is read-only"));
    allow(directory.path(), 0o555);
    assert!(refuse(&file).contains("it is read-only"));
    allow(&file, 0o644);
    assert!(refuse(&file).contains("it is read-only"));
    assert!(refuse(&directory.path().join("new.db")).contains("it cannot be opened"));
    assert!(refuse(&directory.path().join("new/new.db")).contains("its directory cannot be made"));
    allow(directory.path(), 0o755);
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_read_only_file_system_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let seed = seeded(directory.path()).await;
    let disk = directory.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let script = format!("mount -t tmpfs none \"$1\"\ncp {} \"$1\"\nmount -o remount,bind,ro \"$1\"", seed.display());
    for name in ["ai-service.db", "new.db", "new/new.db"] {
        let Some(mut command) = among_own_mounts(&script, &disk) else { return };
        let file = disk.join(name);
        command.arg("--demo").env("DATABASE_URL", address(&file));
        let said = refusal(command, &file);
        assert!(said.contains("Let DATABASE_URL name a place that this user may write to"), "{said}");
    }
}
