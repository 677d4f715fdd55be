//! The vocabulary of the stories. Every list holds plain, distinct words, so that a small tokenizer has
//! one token for most of them, and no word is in two lists of things that can be asked for.

/// Given names of women and girls.
pub(super) const SHE: [&str; 50] = [
    "Ada", "Alma", "Anna", "Bella", "Bianca", "Carla", "Clara", "Cora", "Daphne", "Dora", "Edith", "Elena",
    "Emma", "Esther", "Fiona", "Flora", "Frida", "Greta", "Hana", "Harriet", "Helga", "Ida", "Ines", "Irene",
    "Ivy", "Julia", "Karin", "Kira", "Lara", "Lena", "Lily", "Lucia", "Mabel", "Maria", "Marta", "Mira",
    "Molly", "Nadia", "Nina", "Nora", "Olga", "Paula", "Petra", "Rosa", "Ruth", "Stella", "Tilda", "Vera",
    "Wanda", "Zora",
];

/// Given names of men and boys.
pub(super) const HE: [&str; 50] = [
    "Adam", "Albert", "Anton", "Arthur", "Basil", "Bruno", "Carlo", "Conrad", "Daniel", "David", "Edgar",
    "Emil", "Eric", "Felix", "Finn", "Frank", "George", "Gilbert", "Hans", "Henry", "Hugo", "Igor", "Ivan",
    "Jacob", "Jasper", "John", "Jonas", "Karl", "Leo", "Louis", "Luke", "Magnus", "Marco", "Martin", "Milo",
    "Nathan", "Noah", "Oscar", "Otto", "Owen", "Paul", "Peter", "Quentin", "Rufus", "Samuel", "Simon",
    "Theo", "Thomas", "Victor", "Walter",
];

/// What people do for a living.
pub(super) const ROLES: [&str; 32] = [
    "baker",
    "miller",
    "weaver",
    "potter",
    "sailor",
    "farmer",
    "tailor",
    "hunter",
    "teacher",
    "doctor",
    "painter",
    "fiddler",
    "gardener",
    "shepherd",
    "carpenter",
    "smith",
    "fisher",
    "cobbler",
    "mason",
    "clerk",
    "printer",
    "barber",
    "brewer",
    "butcher",
    "dancer",
    "grocer",
    "guide",
    "juggler",
    "merchant",
    "nurse",
    "piper",
    "singer",
];

/// What a thing looks like.
pub(super) const ADJECTIVES: [&str; 32] = [
    "red", "blue", "green", "yellow", "purple", "white", "black", "grey", "brown", "orange", "silver",
    "golden", "copper", "wooden", "iron", "glass", "painted", "carved", "polished", "dusty", "tiny", "heavy",
    "round", "crooked", "shiny", "striped", "spotted", "plain", "pretty", "rusty", "smooth", "broken",
];

/// Things that can be owned, given, hidden and carried.
pub(super) const OBJECTS: [&str; 64] = [
    "lantern", "kettle", "drum", "flute", "violin", "compass", "map", "mirror", "clock", "key", "ring",
    "necklace", "crown", "coin", "box", "basket", "bucket", "barrel", "bottle", "bowl", "cup", "plate",
    "spoon", "knife", "jug", "vase", "candle", "lamp", "bell", "whistle", "harp", "puppet", "doll", "kite",
    "ball", "book", "letter", "feather", "brush", "ribbon", "scarf", "hat", "glove", "boot", "belt", "cloak",
    "blanket", "pillow", "chair", "stool", "ladder", "rope", "net", "anchor", "wheel", "saddle", "cart",
    "shovel", "axe", "hammer", "needle", "trumpet", "umbrella", "globe",
];

/// Places that people stand beside, behind or near.
pub(super) const PLACES: [&str; 48] = [
    "mill",
    "bridge",
    "chapel",
    "barn",
    "well",
    "tower",
    "orchard",
    "harbour",
    "bakery",
    "stable",
    "fountain",
    "quarry",
    "lighthouse",
    "inn",
    "school",
    "library",
    "garden",
    "gate",
    "wall",
    "oak",
    "willow",
    "boathouse",
    "cottage",
    "castle",
    "temple",
    "museum",
    "theatre",
    "station",
    "dairy",
    "forge",
    "hedge",
    "statue",
    "pump",
    "ferry",
    "pond",
    "brook",
    "cave",
    "cliff",
    "meadow",
    "vineyard",
    "courtyard",
    "workshop",
    "brewery",
    "ruin",
    "signpost",
    "haystack",
    "shrine",
    "oven",
];

/// How somebody or something is placed. No two people of a story get the same one.
pub(super) const PREPOSITIONS: [&str; 8] =
    ["behind", "beside", "near", "outside", "below", "opposite", "beyond", "by"];

/// First and second halves of the names of villages.
pub(super) const TOWN_STARTS: [&str; 20] = [
    "Ash", "Birch", "Bram", "Crow", "Dun", "Elm", "Fern", "Glen", "Hart", "Kings", "Lang", "Marsh", "North",
    "Oak", "Raven", "Stone", "Thorn", "Wester", "Winter", "Wolf",
];

/// See [`TOWN_STARTS`].
pub(super) const TOWN_ENDS: [&str; 10] =
    ["ford", "wick", "ton", "ham", "dale", "field", "mere", "stead", "hollow", "bury"];

/// Times of the year and the day for openings.
pub(super) const TIMES: [&str; 12] = [
    "One spring",
    "One summer",
    "One autumn",
    "One winter",
    "Long ago",
    "Last year",
    "One day",
    "One morning",
    "One windy day",
    "One quiet week",
    "Many years ago",
    "Not long ago",
];

/// Animals that pass by.
pub(super) const ANIMALS: [&str; 20] = [
    "cat", "dog", "goat", "hen", "crow", "owl", "fox", "hare", "mouse", "duck", "goose", "pony", "donkey",
    "sheep", "sparrow", "frog", "beetle", "squirrel", "heron", "badger",
];

/// What a passing animal does.
pub(super) const ANIMAL_ACTS: [&str; 12] = [
    "ran across the road",
    "slept in the sun",
    "sat on the fence",
    "looked for food",
    "called from the roof",
    "watched the people go by",
    "drank from a puddle",
    "hid in the long grass",
    "made everybody laugh",
    "followed the children home",
    "stood still and listened",
    "crossed the square",
];
