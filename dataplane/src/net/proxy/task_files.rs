//! The file of each task: `STATE/tasks/ID`, replaced as a whole with every change.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use undercroft_format::id::TaskId;
use undercroft_format::wire::books::Entry;

const DIRECTORY: &str = "tasks";
/// There while the proxy is suspended.
const SUSPENDED: &str = "suspended";
const TEMPORARY: &str = "new";
const DAMAGED: &str = "damaged";

/// Files of tasks, below one directory.
#[derive(Debug)]
pub struct TaskFiles {
    state: PathBuf,
    tasks: PathBuf,
}

impl TaskFiles {
    /// Those below `state`; directories are made if they are not there, for their owner alone.
    pub fn open(state: &Path) -> io::Result<Self> {
        let tasks = state.join(DIRECTORY);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&tasks)?;
        Ok(Self {
            state: state.to_owned(),
            tasks,
        })
    }

    /// All that there are, and what is wrong with those that cannot be read. They are set aside.
    pub fn load(&self) -> io::Result<(Vec<Entry>, Vec<String>)> {
        let (mut entries, mut problems) = (Vec::new(), Vec::new());
        for found in fs::read_dir(&self.tasks)? {
            let path = found?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Ok(id) = name.parse::<TaskId>() else {
                if path.extension().is_some_and(|kind| kind == TEMPORARY) {
                    fs::remove_file(&path)?;
                }
                continue;
            };
            let problem = match Entry::decode(&fs::read(&path)?) {
                Ok(entry) if entry.id == id => {
                    entries.push(entry);
                    continue;
                }
                Ok(_) => "it is another task's".to_owned(),
                Err(error) => error.to_string(),
            };
            fs::rename(&path, path.with_extension(DAMAGED))?;
            problems.push(format!("the file of task {id} was set aside: {problem}"));
        }
        Ok((entries, problems))
    }

    /// Writes a task's file. Durable on return.
    pub fn write(&self, entry: &Entry) -> io::Result<()> {
        let path = self.path(entry.id);
        let temporary = path.with_extension(TEMPORARY);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&entry.encode())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync(&self.tasks)
    }

    /// Removes a task's file.
    pub fn remove(&self, id: TaskId) -> io::Result<()> {
        fs::remove_file(self.path(id))
    }

    /// Whether the proxy was suspended.
    pub fn is_suspended(&self) -> bool {
        self.state.join(SUSPENDED).exists()
    }

    /// Notes whether the proxy is suspended. Durable on return.
    pub fn set_suspended(&self, is_suspended: bool) -> io::Result<()> {
        let path = self.state.join(SUSPENDED);
        match is_suspended {
            true => File::create(&path).map(drop)?,
            false => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        sync(&self.state)
    }

    fn path(&self, id: TaskId) -> PathBuf {
        self.tasks.join(id.to_string())
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use undercroft_format::trust::role::Role;
    use undercroft_format::trust::scope::Scope;
    use undercroft_format::wire::books::{Books, Owner};
    use undercroft_format::wire::task::{BackupTask, Task};

    use super::*;

    #[test]
    fn files_come_back_and_a_damaged_one_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let files = TaskFiles::open(dir.path()).unwrap();
        let mut books = Books::new(1, false);
        for id in [1, 2] {
            let owner = Owner {
                name: "a".parse().unwrap(),
                role: Role::Admin,
                scope: Scope::everything(),
            };
            let task = Task::Backup(BackupTask::default());
            books
                .submit(TaskId::from_bytes([id; 16]), task, owner, 0)
                .unwrap();
        }
        for entry in books.entries() {
            files.write(entry).unwrap();
        }
        let damaged = files.path(TaskId::from_bytes([2; 16]));
        let mut bytes = fs::read(&damaged).unwrap();
        bytes[20] ^= 1;
        fs::write(&damaged, bytes).unwrap();
        fs::write(damaged.with_extension(TEMPORARY), b"half").unwrap();
        let (entries, problems) = files.load().unwrap();
        assert_eq!(entries, [books.entries()[0].clone()]);
        assert_eq!(problems.len(), 1);
        assert!(damaged.with_extension(DAMAGED).exists());
        assert!(!damaged.with_extension(TEMPORARY).exists());
        assert_eq!(files.load().unwrap(), (entries, Vec::new()));
        files.set_suspended(true).unwrap();
        assert!(files.is_suspended());
        files.set_suspended(false).unwrap();
        files.set_suspended(false).unwrap();
        assert!(!files.is_suspended());
    }
}
