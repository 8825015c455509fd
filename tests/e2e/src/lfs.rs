//! Files that Git LFS keeps: in the repository's tree is a pointer, and the Git server has the content beside it.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::Repository;

impl Repository {
    /// Gives a content to the Git server's LFS, and returns the pointer to commit in its place
    /// (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer>). A file with pointers needs the line
    /// `PATH filter=lfs diff=lfs merge=lfs -text` in `.gitattributes`.
    #[must_use]
    pub fn lfs(&self, content: &[u8]) -> String {
        let id = lfs_id(content);
        let path = self.lfs_object(&id);
        std::fs::create_dir_all(path.parent().expect("an object is in a directory")).expect("a directory can be made");
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        pointer(content)
    }

    fn lfs_object(&self, id: &str) -> std::path::PathBuf {
        Path::new(&self.directory).join("lfs/objects").join(&id[..2]).join(&id[2..4]).join(id)
    }
}

/// The pointer to a content, whether or not the Git server has it.
#[must_use]
pub fn pointer(content: &[u8]) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n", lfs_id(content), content.len())
}

fn lfs_id(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}
