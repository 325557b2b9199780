//! Files that appear whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::base::{Error, Result};

/// Writes `bytes` beside `path`, forces them to the disk and renames: `path` holds all of them or what it held before.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".naevus-");
    #[cfg(unix)]
    {
        // The user's umask decides, as for any other file; a temporary file alone would be the owner's only.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).map_err(|e| Error::io(path, &e))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(|e| Error::io(path, &e))?;
    file.persist(path).map_err(|e| Error::io(path, &e.error))?;
    sync_folder(folder);
    Ok(())
}

/// Forces a rename in `folder` to the disk, where the system can: elsewhere the rename alone must do.
fn sync_folder(folder: &Path) {
    #[cfg(unix)]
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
    #[cfg(not(unix))]
    let _ = folder;
}
