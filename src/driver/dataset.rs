//! A labelled set of images: a folder per class, or a table of labels with a folder of images and one of masks.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::base::error::edit_distance;
use crate::base::{Error, Kind, Result};

/// File name endings of images, in the order of preference.
const IMAGE_ENDINGS: [&str; 7] = ["jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp"];
/// What a mask's name has between the id and its ending, in the order of preference.
const MASK_SUFFIXES: [&str; 3] = ["", "_segmentation", "_mask"];
/// Columns of ISIC 2019's ground truth: one holds 1, the others 0.
const ONE_HOT: [&str; 9] = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"];
/// Names of columns that are taken when none is asked for.
const ID_COLUMNS: [&str; 6] = ["image_id", "image", "isic_id", "image_name", "id", "filename"];
const CLASS_COLUMNS: [&str; 5] = ["dx", "class", "label", "diagnosis", "target"];
const GROUP_COLUMNS: [&str; 4] = ["lesion_id", "patient_id", "group", "subject_id"];

/// One image with its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Unique in the set; names no folder.
    pub id: String,
    pub class: String,
    /// Lesion or patient: images of one group show the same skin.
    pub group: Option<String>,
    pub image: PathBuf,
    pub mask: Option<PathBuf>,
}

/// Where the data set lies, as the command line says it.
#[derive(Clone, Debug, Default)]
pub struct DataSetOptions {
    /// A folder per class, or a folder that holds labels.csv (or one table), images/ and masks/.
    pub root: Option<PathBuf>,
    pub labels: Option<PathBuf>,
    pub images: Option<PathBuf>,
    pub masks: Option<PathBuf>,
    pub id_column: Option<String>,
    pub class_column: Option<String>,
    pub group_column: Option<String>,
}

/// The items, sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSet {
    pub items: Vec<Item>,
    /// Names of the classes that have items, sorted.
    pub classes: Vec<String>,
    /// Ids of the table that have no image file, sorted; the caller reports them.
    pub missing: Vec<String>,
}

impl DataSet {
    /// Lists the items; opens no image.
    pub fn open(options: &DataSetOptions) -> Result<DataSet> {
        let rooted = |name: &str| options.root.as_ref().map(|root| root.join(name)).filter(|path| path.is_dir());
        let masks = options.masks.clone().or_else(|| rooted("masks"));
        if let Some(root) = options.root.as_ref().filter(|root| !root.is_dir()) {
            return Err(Error::new(Kind::Data, root.display().to_string(), "not a folder, expected a data set"));
        }
        let labels = match (&options.labels, &options.root) {
            (Some(labels), _) => Some(labels.clone()),
            (None, Some(root)) => table_in(root)?,
            (None, None) => return Err(Error::new(Kind::Usage, "--dataset", "absent, expected --dataset FOLDER, or --labels FILE with --images FOLDER")),
        };
        let Some(labels) = labels else {
            return match &options.root {
                Some(root) => folders(root, masks.as_deref()),
                None => Err(Error::new(Kind::Usage, "--labels", "absent")),
            };
        };
        let beside = || options.root.clone().or_else(|| labels.parent().map(Path::to_path_buf));
        let images = options.images.clone().or_else(|| rooted("images")).or_else(beside).unwrap_or_default();
        tabled(&labels, &images, masks.as_deref(), options)
    }

    /// Items of `class`; an error that lists the classes and their counts when there are none.
    pub fn of_class(&self, class: &str) -> Result<Vec<&Item>> {
        let items: Vec<&Item> = self.items.iter().filter(|item| item.class == class).collect();
        if items.is_empty() {
            let known: Vec<String> = self.counts().iter().map(|(name, count)| format!("{name} {count}")).collect();
            return Err(Error::new(Kind::Data, class, format!("no image of this class, expected one of {}", known.join(", "))));
        }
        Ok(items)
    }

    /// Number of items of each class.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        self.items.iter().for_each(|item| *counts.entry(item.class.as_str()).or_insert(0) += 1);
        counts
    }

    fn collected(place: &Path, mut items: Vec<Item>, mut missing: Vec<String>) -> Result<DataSet> {
        items.sort_by(|a, b| a.id.cmp(&b.id));
        missing.sort();
        if let Some(pair) = items.windows(2).find(|pair| pair[0].id == pair[1].id) {
            let fact = format!("two images have the id `{}`: {} and {}", pair[0].id, pair[0].image.display(), pair[1].image.display());
            return Err(Error::new(Kind::Data, place.display().to_string(), fact));
        }
        let mut classes: Vec<String> = items.iter().map(|item| item.class.clone()).collect();
        classes.sort();
        classes.dedup();
        Ok(DataSet { items, classes, missing })
    }
}

/// `name` when it can be one component of a path everywhere: an id or class of a table must not lead out of a folder.
pub fn plain_name(name: &str) -> Option<&str> {
    let bad = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    (!name.is_empty() && name.len() <= 200 && name != "." && name != ".." && !name.contains(bad)).then_some(name)
}

/// The files of one folder by lower-case name. Where two differ only by case, the first in byte order counts.
struct Listing(HashMap<String, PathBuf>);

impl Listing {
    fn of(folder: &Path) -> Result<Listing> {
        let mut files: Vec<PathBuf> = entries(folder)?;
        files.sort();
        let mut names = HashMap::with_capacity(files.len());
        for path in files {
            if let Some(name) = path.file_name().and_then(OsStr::to_str) {
                names.entry(name.to_lowercase()).or_insert(path);
            }
        }
        Ok(Listing(names))
    }

    /// The image of `id`: with the ending the id already has, or any known one.
    fn image(&self, id: &str) -> Option<&PathBuf> {
        let id = id.to_lowercase();
        let exact = has_image_ending(&id).then(|| self.0.get(&id)).flatten();
        exact.or_else(|| IMAGE_ENDINGS.iter().find_map(|ending| self.0.get(&format!("{id}.{ending}"))))
    }

    fn mask(&self, id: &str) -> Option<&PathBuf> {
        let id = id.to_lowercase();
        let stem = if has_image_ending(&id) { id.rsplit_once('.').map_or(id.as_str(), |(stem, _)| stem) } else { &id };
        MASK_SUFFIXES.iter().find_map(|suffix| self.0.get(&format!("{stem}{suffix}.png")))
    }
}

fn has_image_ending(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| IMAGE_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(folder).map_err(|e| Error::io(folder, &e))?;
    list.map(|entry| entry.map(|e| e.path()).map_err(|e| Error::io(folder, &e))).collect()
}

/// labels.csv, or the only table of a folder.
fn table_in(root: &Path) -> Result<Option<PathBuf>> {
    let named = root.join("labels.csv");
    if named.is_file() {
        return Ok(Some(named));
    }
    let is_table = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) && path.is_file();
    let mut tables: Vec<PathBuf> = entries(root)?.into_iter().filter(is_table).collect();
    tables.sort();
    match tables.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, second, ..] => {
            let names = [first, second].map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned());
            let fact = format!("{} tables ({}, ...), expected labels.csv or one of them by --labels", tables.len(), names.join(", "));
            Err(Error::new(Kind::Data, root.display().to_string(), fact))
        }
    }
}

/// A folder per class; `masks` beside them (or as given) is not one.
fn folders(root: &Path, masks: Option<&Path>) -> Result<DataSet> {
    let masks = masks.map(|folder| Listing::of(folder).map(|list| (folder, list))).transpose()?;
    let (mut items, mut empty) = (Vec::new(), Vec::new());
    let mut classes: Vec<PathBuf> = entries(root)?.into_iter().filter(|path| path.is_dir()).collect();
    classes.sort();
    for folder in classes {
        let hidden = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || masks.as_ref().is_some_and(|(path, _)| *path == folder) {
            continue;
        }
        let class = text(&folder, folder.file_name())?;
        let before = items.len();
        for image in entries(&folder)? {
            if !image.is_file() || !image.file_name().is_some_and(|name| has_image_ending(&name.to_string_lossy())) {
                continue;
            }
            let id = text(&image, image.file_stem())?;
            let mask = masks.as_ref().and_then(|(_, list)| list.mask(&id).cloned());
            items.push(Item { id, class: class.clone(), group: None, image, mask });
        }
        if items.len() == before {
            empty.push(class);
        }
    }
    let set = DataSet::collected(root, items, Vec::new())?;
    let place = root.display().to_string();
    if set.items.is_empty() {
        return Err(Error::new(Kind::Data, place, "no images, expected a folder per class with images in it, or labels.csv with images/"));
    }
    if let Some(class) = empty.first() {
        return set.of_class(class).map(|_| set.clone()).map_err(|e| e.within(&place));
    }
    Ok(set)
}

fn text(path: &Path, name: Option<&OsStr>) -> Result<String> {
    let name = name.and_then(OsStr::to_str).and_then(plain_name).map(String::from);
    name.ok_or_else(|| Error::new(Kind::Data, path.display().to_string(), "the name is not plain UTF-8 text of at most 200 bytes"))
}

/// What a row says about one image.
struct Row {
    line: u64,
    id: String,
    class: String,
    group: Option<String>,
}

fn tabled(labels: &Path, images: &Path, masks: Option<&Path>, options: &DataSetOptions) -> Result<DataSet> {
    let place = labels.display().to_string();
    let rows = rows(labels, options)?;
    let images_by_name = Listing::of(images)?;
    let masks_by_name = masks.map(Listing::of).transpose()?;
    let mut lines: HashMap<String, u64> = HashMap::with_capacity(rows.len());
    let (mut items, mut missing) = (Vec::new(), Vec::new());
    for Row { line, id, class, group } in rows {
        if let Some(before) = lines.insert(id.clone(), line) {
            return Err(Error::new(Kind::Data, place, format!("line {line}: id `{id}` stands in line {before} too")));
        }
        match images_by_name.image(&id) {
            Some(image) => items.push(Item { mask: masks_by_name.as_ref().and_then(|list| list.mask(&id).cloned()), id, class, group, image: image.clone() }),
            None => missing.push(id),
        }
    }
    if items.is_empty() {
        missing.sort();
        let few = missing.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let fact = format!("none of the {} images that {place} names ({few}, ...), expected <id>.jpg, .png, .tif, .bmp or .webp", missing.len());
        return Err(Error::new(Kind::Data, images.display().to_string(), fact));
    }
    DataSet::collected(labels, items, missing)
}

/// The columns that were found in a table's head.
struct Columns {
    id: usize,
    class: Class,
    group: Option<usize>,
}

enum Class {
    Named(usize),
    /// Column and class name, in the table's order.
    OneHot(Vec<(usize, String)>),
}

fn rows(labels: &Path, options: &DataSetOptions) -> Result<Vec<Row>> {
    let place = labels.display().to_string();
    let wrong = |line: u64, fact: String| Error::new(Kind::Data, place.clone(), if line == 0 { fact } else { format!("line {line}: {fact}") });
    let broken = |e: csv::Error| wrong(e.position().map_or(0, csv::Position::line), format!("not a row of this table: {e}"));
    let file = std::fs::File::open(labels).map_err(|e| Error::io(labels, &e))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
    let head: Vec<String> = reader.headers().map_err(broken)?.iter().map(|name| name.trim_start_matches('\u{feff}').to_string()).collect();
    let columns = columns(&head, options).map_err(|e| e.within(&place))?;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |i: usize| record.get(i).unwrap_or_default();
        let name = |what: &str, text: &str| match plain_name(text) {
            Some(text) => Ok(text.to_string()),
            None => Err(wrong(line, format!("{what} {text:?}, expected a name of 1 to 200 bytes without path separators"))),
        };
        let class = match &columns.class {
            Class::Named(i) => cell(*i),
            Class::OneHot(classes) => one_hot(classes, &cell).map_err(|fact| wrong(line, fact))?,
        };
        let group = columns.group.map(cell).filter(|text| !text.is_empty()).map(String::from);
        rows.push(Row { line, id: name("id", cell(columns.id))?, class: name("class", class)?, group });
    }
    if rows.is_empty() { Err(wrong(0, "no rows, expected one for each image".to_string())) } else { Ok(rows) }
}

fn one_hot<'a>(classes: &'a [(usize, String)], cell: &dyn Fn(usize) -> &'a str) -> std::result::Result<&'a str, String> {
    let mut hot = Vec::new();
    for (column, class) in classes {
        match cell(*column).parse::<f64>() {
            Ok(1.0) => hot.push(class.as_str()),
            Ok(0.0) => {}
            _ => return Err(format!("{class} is {:?}, expected 0 or 1", cell(*column))),
        }
    }
    match hot.as_slice() {
        [one] => Ok(one),
        _ => Err(format!("{} classes are 1, expected one", hot.len())),
    }
}

fn columns(head: &[String], options: &DataSetOptions) -> Result<Columns> {
    let find = |name: &str| head.iter().position(|h| h == name);
    let asked = |flag: &str, name: &Option<String>| match name {
        None => Ok(None),
        Some(name) => find(name).map(Some).ok_or_else(|| {
            let nearest = head.iter().min_by_key(|h| edit_distance(h, name)).map(|h| format!("; nearest is `{h}`")).unwrap_or_default();
            Error::new(Kind::Data, flag, format!("no column `{name}`, expected one of {}{nearest}", head.join(", ")))
        }),
    };
    let usual = |names: &[&str]| names.iter().find_map(|name| head.iter().position(|h| h.eq_ignore_ascii_case(name)));
    let none = |flag: &str, names: &[&str]| {
        let fact = format!("none of the usual columns ({}), expected its name out of {}", names.join(", "), head.join(", "));
        Error::new(Kind::Data, flag, fact)
    };
    let id = asked("--id-column", &options.id_column)?.or_else(|| usual(&ID_COLUMNS)).ok_or_else(|| none("--id-column", &ID_COLUMNS))?;
    let hot: Vec<(usize, String)> = ONE_HOT.iter().filter_map(|name| find(name).map(|i| (i, name.to_string()))).collect();
    let class = match asked("--class-column", &options.class_column)? {
        Some(i) => Class::Named(i),
        // UNK is absent from some copies of the table.
        None if hot.len() >= ONE_HOT.len() - 1 => Class::OneHot(hot),
        None => Class::Named(usual(&CLASS_COLUMNS).ok_or_else(|| none("--class-column", &CLASS_COLUMNS))?),
    };
    Ok(Columns { id, class, group: asked("--group-column", &options.group_column)?.or_else(|| usual(&GROUP_COLUMNS)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
    }

    fn rooted(root: &Path) -> DataSetOptions {
        DataSetOptions { root: Some(root.to_path_buf()), ..Default::default() }
    }

    fn table(text: &str, files: &[&str]) -> (tempfile::TempDir, DataSetOptions) {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), files);
        std::fs::write(dir.path().join("labels.csv"), text).unwrap();
        let options = rooted(dir.path());
        (dir, options)
    }

    fn brief(set: &DataSet) -> Vec<(&str, &str)> {
        set.items.iter().map(|item| (item.id.as_str(), item.class.as_str())).collect()
    }

    #[test]
    fn a_folder_per_class() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["nv/b.JPG", "nv/a.png", "df/c.webp", "df/notes.txt", "masks/a_mask.png", ".git/x.png", "readme.md"]);
        let set = DataSet::open(&rooted(dir.path())).unwrap();
        assert_eq!(brief(&set), [("a", "nv"), ("b", "nv"), ("c", "df")]);
        assert_eq!(set.classes, ["df", "nv"]);
        assert_eq!(set.items[0].mask.as_deref(), Some(dir.path().join("masks/a_mask.png").as_path()));
        assert_eq!((set.items[1].mask.as_ref(), set.counts()["nv"]), (None, 2));
        assert!(set.of_class("vasc").unwrap_err().to_string().ends_with("vasc: no image of this class, expected one of df 1, nv 2"));
        std::fs::create_dir(dir.path().join("vasc")).unwrap();
        let error = DataSet::open(&rooted(dir.path())).unwrap_err().to_string();
        assert!(error.contains("vasc: no image of this class, expected one of df 1, nv 2"), "{error}");
        touch(dir.path(), &["vasc/a.bmp"]);
        assert!(DataSet::open(&rooted(dir.path())).unwrap_err().to_string().contains("two images have the id `a`"));
    }

    #[test]
    fn ham10000s_table() {
        let text = "image_id,lesion_id,dx,age\nI2,L1,nv,40\nI1,L1,nv,\nI3,,df,7\nI4,L4,df,1\n";
        let (dir, options) = table(text, &["images/i1.jpg", "images/I2.JPEG", "images/I3.png", "masks/I1_segmentation.png", "masks/I2.png"]);
        let set = DataSet::open(&options).unwrap();
        assert_eq!(brief(&set), [("I1", "nv"), ("I2", "nv"), ("I3", "df")]);
        assert_eq!(set.missing, ["I4"]);
        assert_eq!(set.items[0].image, dir.path().join("images/i1.jpg"));
        assert_eq!(set.items[1].mask, Some(dir.path().join("masks/I2.png")));
        assert_eq!(set.items.iter().map(|i| i.group.as_deref()).collect::<Vec<_>>(), [Some("L1"), Some("L1"), None]);
    }

    #[test]
    fn isic2019s_one_hot_table() {
        let head = "\u{feff}image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n";
        let (_dir, options) = table(&format!("{head}A,0.0,1.0,0,0,0,0,0,0,0\nB,0,0,0,0,0,0,0,1.0,0\n"), &["images/A.jpg", "images/B.jpg"]);
        assert_eq!(brief(&DataSet::open(&options).unwrap()), [("A", "NV"), ("B", "SCC")]);
        for (row, want) in
            [("A,1,1,0,0,0,0,0,0,0", "line 2: 2 classes are 1"), ("A,0,0,0,0,0,0,0,0,0", "0 classes are 1"), ("A,0.5,0,0,0,0,0,0,0,0", "MEL is \"0.5\"")]
        {
            let (_dir, options) = table(&format!("{head}{row}\n"), &["images/A.jpg"]);
            let error = DataSet::open(&options).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn columns_by_name_and_folders_by_flag() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["pictures/x.tif", "shapes/x.png"]);
        let labels = dir.path().join("truth.csv");
        std::fs::write(&labels, "file,kind,who\nx.tif,\"a, b\",p1\n").unwrap();
        let (file, kind, who) = (Some("file".to_string()), Some("kind".to_string()), Some("who".to_string()));
        let mut options = DataSetOptions { labels: Some(labels), images: Some(dir.path().join("pictures")), ..Default::default() };
        assert!(DataSet::open(&options).unwrap_err().to_string().contains("expected its name out of file, kind, who"));
        options = DataSetOptions { masks: Some(dir.path().join("shapes")), id_column: file, class_column: kind, group_column: who, ..options };
        let set = DataSet::open(&options).unwrap();
        assert_eq!(brief(&set), [("x.tif", "a, b")]);
        assert_eq!((set.items[0].group.as_deref(), set.items[0].mask.is_some()), (Some("p1"), true));
        options.group_column = Some("whom".to_string());
        let error = DataSet::open(&options).unwrap_err().to_string();
        assert!(error.contains("--group-column: no column `whom`, expected one of file, kind, who; nearest is `who`"), "{error}");
    }

    #[test]
    fn bad_tables_name_their_line() {
        let rows = [
            ("image_id,dx\nA,nv\nB,df\nA,df\n", "line 4: id `A` stands in line 2 too"),
            ("image_id,dx\n../../etc/passwd,nv\n", "line 2: id \"../../etc/passwd\""),
            ("image_id,dx\nA,..\n", "line 2: class \"..\""),
            ("image_id,dx\nA,nv\nC:\\A,nv\n", "line 3: id"),
            ("image_id,dx\nA,nv\nB\n", "line 3: not a row of this table"),
            ("image_id,dx\nA,\n", "line 2: class \"\""),
            ("image_id,dx\n", "no rows"),
            ("", "none of the usual columns"),
            ("image_id,dx\nY,nv\nZ,nv\n", "none of the 2 images that"),
        ];
        for (text, want) in rows {
            let (_dir, options) = table(text, &["images/A.jpg", "images/B.jpg"]);
            let error = DataSet::open(&options).unwrap_err();
            assert!(error.kind() == Kind::Data && error.to_string().contains(want), "{text:?}: {error}");
        }
        let (dir, options) = table("", &["images/A.jpg"]);
        std::fs::write(dir.path().join("labels.csv"), [b'i', b'd', 0xff, b'\n']).unwrap();
        assert!(DataSet::open(&options).is_err());
    }

    #[test]
    fn data_sets_that_are_not_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DataSet::open(&DataSetOptions::default()).unwrap_err().kind(), Kind::Usage);
        assert!(DataSet::open(&rooted(&dir.path().join("absent"))).unwrap_err().to_string().contains("not a folder"));
        assert!(DataSet::open(&rooted(dir.path())).unwrap_err().to_string().contains("no images"));
        touch(dir.path(), &["a.csv", "b.csv"]);
        assert!(DataSet::open(&rooted(dir.path())).unwrap_err().to_string().contains("2 tables (a.csv, b.csv, ...)"));
    }

    #[test]
    fn the_real_data_set_is_read() {
        let root = Path::new("../shared/data/ham10000");
        if !root.is_dir() {
            println!("skipped: ../shared absent");
            return;
        }
        let set = DataSet::open(&rooted(root)).unwrap();
        assert_eq!((set.items.len(), set.missing.len(), set.items.iter().filter(|i| i.mask.is_some()).count()), (5984, 0, 5984));
        assert_eq!((set.counts()["nv"], set.counts()["df"], set.classes.len()), (4323, 60, 7));
        assert!(set.items.iter().all(|item| item.group.is_some()));
    }
}
