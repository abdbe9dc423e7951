"""The data sets this package reads: where each comes from, what it needs, and the files that can be
downloaded.

Nothing here touches the disk or the network. A set is offered for download only if the sha256 of its original
files is known; STL10's is not published (only an md5 of the archive is), so it is read but not fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DATA_SETS", "DataSet", "RemoteFile", "describe", "find"]


@dataclass(frozen=True)
class RemoteFile:
    """One original file. `sha256` and `size` are of the file as served, `content_sha256` of it
    uncompressed (None for an archive, whose reader knows the checksums of the files in it).
    """

    name: str
    size: int
    sha256: str
    content_sha256: str | None


@dataclass(frozen=True)
class DataSet:
    """What is known about one data set.

    key: its name on the command line. folders: where a data folder may keep it, the first being where a
    download goes ("." is the data folder itself). mirrors: https folders that serve `files`, tried in this
    order. needs: the extra that reading it takes, if any. by_hand: how to get a set that is not offered for
    download.
    """

    key: str
    title: str
    contents: str
    source: str
    licence: str
    folders: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    classes: tuple[str, ...] = ()
    needs: str | None = None
    by_hand: str = ""

    @property
    def downloadable(self) -> bool:
        return bool(self.files and self.mirrors)

    @property
    def size(self) -> int:
        """Bytes of all files of a download."""
        return sum(file.size for file in self.files)


_MNIST = DataSet(
    key="mnist",
    title="MNIST",
    contents="60,000 training and 10,000 test images of handwritten digits, 28x28 grey",
    source="LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/",
    licence="none stated with the data; often given as CC BY-SA 3.0",
    folders=("mnist", "MNIST", "MNIST/raw", "."),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    files=(
        RemoteFile(
            "train-images-idx3-ubyte.gz",
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        RemoteFile(
            "train-labels-idx1-ubyte.gz",
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        RemoteFile(
            "t10k-images-idx3-ubyte.gz",
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        RemoteFile(
            "t10k-labels-idx1-ubyte.gz",
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    classes=tuple("0123456789"),
)

_FASHION = DataSet(
    key="fashion-mnist",
    title="Fashion-MNIST",
    contents="60,000 training and 10,000 test images of clothing, 28x28 grey",
    source="Xiao, Rasul and Vollgraf, https://github.com/zalandoresearch/fashion-mnist",
    licence="MIT, Zalando SE",
    folders=("fashion-mnist", "fashion", "FashionMNIST", "FashionMNIST/raw", "."),
    mirrors=("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",),
    files=(
        RemoteFile(
            "train-images-idx3-ubyte.gz",
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        RemoteFile(
            "train-labels-idx1-ubyte.gz",
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        RemoteFile(
            "t10k-images-idx3-ubyte.gz",
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        RemoteFile(
            "t10k-labels-idx1-ubyte.gz",
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
)

_STL10 = DataSet(
    key="stl10",
    title="STL10",
    contents="10 classes, 500 training and 800 test photographs each, 96x96 RGB, original binary files",
    source="Coates, Ng and Lee, https://cs.stanford.edu/~acoates/stl10/",
    licence="none stated; the photographs are ImageNet's, whose terms ask for non-commercial research use",
    folders=("stl10_binary", "stl10", "STL10", "."),
    classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    by_hand=(
        "the sha256 of its archive is not published, so it is not offered for download: get "
        "https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz and unpack it into the data folder, "
        "which makes stl10_binary/train_X.bin and the rest"
    ),
)

_STL10_LIKE = DataSet(
    key="stl10-like",
    title="STL10 stand-in",
    contents="10 classes, 400 training and 100 test photographs each, 96x96 RGB, as folders of JPEG files",
    source="Imagenette resized from 224x224 (thunderInfy/imagenette); its own train and val folders",
    licence="none stated; ImageNet terms ask for non-commercial research use",
    folders=("stl10_like", "stl10-like", "."),
    needs="experiments",
    by_hand="a folder of your own works as well: train/CLASS/*.jpg and test/CLASS/*.jpg, all 96x96",
)

_CIFAR10 = DataSet(
    key="cifar10",
    title="CIFAR-10",
    contents="50,000 training and 10,000 test photographs of 10 classes, 32x32 RGB, binary or python version",
    source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    licence="none stated with the data",
    folders=(
        "cifar10",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "cifar10/cifar-10-batches-bin",
        "cifar10/cifar-10-batches-py",
        ".",
    ),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    files=(
        RemoteFile(
            "cifar-10-binary.tar.gz",
            170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            None,
        ),
    ),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

_CIFAR10_SUBSET = DataSet(
    key="cifar10-subset",
    title="CIFAR-10 subset",
    contents="10,000 training images (data_batch_1) and the first 1,000 test images of CIFAR-10 in one npz file",
    source="lossless copies in taneishi/convnetjs",
    licence="none stated for the data",
    folders=("cifar10", "."),
    by_hand="any cifar10_subset.npz with x_train, y_train, x_test, y_test will do, images (N, 32, 32, 3)",
)

_OMNIGLOT = DataSet(
    key="omniglot",
    title="Omniglot",
    contents="19,280 + 13,180 drawings of 964 + 659 characters by 20 people, 105x105, 1 bit, as two zip files",
    source="Lake, Salakhutdinov and Tenenbaum, https://github.com/brendenlake/omniglot",
    licence="MIT",
    folders=("omniglot", "Omniglot", "omniglot-py", "."),
    needs="experiments",
    by_hand=(
        "the sha256 of its files is not published, so it is not offered for download: get "
        "images_background.zip and images_evaluation.zip from the folder python of "
        "https://github.com/brendenlake/omniglot and put them, packed, into the folder omniglot of the data folder"
    ),
)

_SUPER_RESOLUTION = DataSet(
    key="super-resolution",
    title="super-resolution sets",
    contents="T91 (91 training images), Set5, Set14, BSD100 and Urban100 (5, 14, 100 and 100 test images), RGB",
    source=(
        "T91: Yang and others 2010; Set5: Bevilacqua and others 2012; Set14: Zeyde and others 2010; BSD100: Martin "
        "and others 2001; Urban100: Huang and others 2015, https://github.com/jbhuang0604/SelfExSR"
    ),
    licence="none stated; the Berkeley photographs (BSD100, part of T91) are for non-commercial research only",
    folders=("sr", "SR", "super-resolution", "."),
    needs="experiments",
    by_hand=(
        "put the full-resolution images into the folders sr/T91, sr/Set5, sr/Set14, sr/BSD100 and sr/Urban100 of "
        "the data folder, as PNG or JPEG files; https://github.com/jbhuang0604/SelfExSR has the test sets"
    ),
)

_CELEBA = DataSet(
    key="celeba",
    title="CelebA",
    contents="202,599 photographs of faces, aligned and cropped, 178x218 RGB",
    source="Liu, Luo, Wang and Tang, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    licence="non-commercial research only",
    folders=(
        "celeba/img_align_celeba",
        "CelebA/img_align_celeba",
        "CelebA/Img/img_align_celeba",
        "img_align_celeba",
    ),
    needs="experiments",
    by_hand=(
        "its terms have to be accepted at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: get "
        "img_align_celeba.zip there and unpack it into the folder celeba of the data folder, which makes "
        "celeba/img_align_celeba/000001.jpg and the rest"
    ),
)

_CELEBA_HQ = DataSet(
    key="celeba-hq",
    title="CelebA-HQ",
    contents="30,000 photographs of faces, up to 1024x1024 RGB",
    source="Karras, Aila, Laine and Lehtinen, https://github.com/tkarras/progressive_growing_of_gans",
    licence="CC BY-NC 4.0; the photographs are CelebA's, for non-commercial research only",
    folders=("celeba-hq", "celeba_hq", "CelebA-HQ", "CelebAMask-HQ/CelebA-HQ-img", "CelebA-HQ-img"),
    needs="experiments",
    by_hand=(
        "https://github.com/tkarras/progressive_growing_of_gans says how to make it; put its square images, of "
        "any size, into the folder celeba-hq of the data folder"
    ),
)

_CELEBA_LIKE = DataSet(
    key="celeba-like",
    title="CelebA stand-in",
    contents="2,000 photographs of faces, one per person, 128x128 RGB, in one folder of JPEG files",
    source="Labeled Faces in the Wild, deep-funneled (braun-steven/dfi-tensorflow), middle 178x178 resized",
    licence="none stated",
    folders=("faces128", "celeba_like", "celeba-like"),
    needs="experiments",
    by_hand="a folder celeba-like with square photographs of faces of your own works as well",
)

_PLACES2 = DataSet(
    key="places2",
    title="Places2",
    contents="1,803,460 training, 36,500 validation and 328,500 test photographs of 365 scenes, 256x256 RGB",
    source="Zhou, Lapedriza, Khosla, Oliva and Torralba, http://places2.csail.mit.edu",
    licence="non-commercial research and education only",
    folders=("places2", "Places2", "places365", "."),
    needs="experiments",
    by_hand=(
        "get the small images of Places365-Standard, train (data_256) and test (test_256) or validation "
        "(val_256), from http://places2.csail.mit.edu/download.html and unpack them into the folder places2 of "
        "the data folder"
    ),
)

_PLACES2_LIKE = DataSet(
    key="places2-like",
    title="Places2 stand-in",
    contents="320 photographs of 8 scenes, 256x256 RGB, in one folder of JPEG files",
    source="SUN database (akshay993/Spatial-Pyramid-Matching-for-Scene-Classification)",
    licence="none stated for the photographs",
    folders=("scenes256", "places2_like", "places2-like"),
    needs="experiments",
    by_hand="a folder places2-like with photographs of your own works as well",
)

_PHOTOS = DataSet(
    key="photos",
    title="sample photographs",
    contents="six colour photographs that are inside the scikit-learn and scikit-image wheels",
    source="scikit-learn (china, flower), scikit-image (astronaut, chelsea, coffee, rocket)",
    licence=(
        "china, flower: CC BY 2.0, credits in scikit-learn's datasets/images/README.txt; astronaut, rocket: "
        "public domain, NASA and SpaceX; chelsea, coffee: CC0, credits in scikit-image's data module"
    ),
    needs="experiments",
    by_hand="nothing to get, `pip install 'lmser[experiments]'` brings them",
)

_FSDD = DataSet(
    key="fsdd",
    title="Free Spoken Digit Dataset",
    contents="3,000 recordings of the ten digits by six speakers, 8,000 Hz mono, wav files, or a subset in one npz file",
    source="Jakobovski and others, https://github.com/Jakobovski/free-spoken-digit-dataset",
    licence="CC BY-SA 4.0",
    folders=("fsdd", "free-spoken-digit-dataset", "."),
    classes=tuple("0123456789"),
    by_hand=(
        "get the folder recordings of https://github.com/Jakobovski/free-spoken-digit-dataset and put it into the "
        "folder fsdd of the data folder, which makes fsdd/recordings/0_george_0.wav and the rest"
    ),
)

_BIRDS10 = DataSet(
    key="birds10",
    title="song of ten birds",
    contents="one recording of 13 s of each of 10 species, 16,000 Hz mono, in one npz file",
    source="https://github.com/AmyangXYZ/BirdSong_Recognition",
    licence="none stated",
    folders=("birds10", "."),
    by_hand=(
        "any birds10.npz with samples int16 (species, n), species (names) and rate will do; "
        "https://github.com/AmyangXYZ/BirdSong_Recognition has such recordings"
    ),
)

DATA_SETS = MappingProxyType(
    {
        s.key: s
        for s in (
            _MNIST,
            _FASHION,
            _STL10,
            _STL10_LIKE,
            _CIFAR10,
            _CIFAR10_SUBSET,
            _OMNIGLOT,
            _SUPER_RESOLUTION,
            _CELEBA,
            _CELEBA_HQ,
            _CELEBA_LIKE,
            _PLACES2,
            _PLACES2_LIKE,
            _PHOTOS,
            _FSDD,
            _BIRDS10,
        )
    }
)


def find(name: str) -> DataSet:
    """The data set called `name`, or a ValueError that lists the names there are."""
    if name not in DATA_SETS:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def describe(name: str) -> str:
    """One paragraph on a data set: contents, source, licence, and how to get it."""
    data_set = find(name)
    if data_set.downloadable:
        how = f"`lmser data get {data_set.key}` downloads it ({data_set.size / 1e6:.0f} MB)"
    else:
        how = data_set.by_hand
    return (
        f"{data_set.title}: {data_set.contents}. Source: {data_set.source}. Licence: {data_set.licence}. "
        f"How to get it: {how}."
    )
