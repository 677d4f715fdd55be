//! The vocabulary of the stories. Every list holds plain, distinct words, so that a small tokenizer has
//! one token for most of them (of the small vocabulary: for all), and no word is in two lists of things that can be asked for.
//! [`super::Vocabulary::Small`] takes the first words of each list.

/// Given names of women and girls.
pub(super) const SHE: [&str; 50] = [
    "Ada", "Clara", "Dora", "Greta", "Ivy", "Lena", "Mira", "Rosa", "Alma", "Anna", "Bella", "Bianca",
    "Carla", "Cora", "Daphne", "Edith", "Elena", "Emma", "Esther", "Fiona", "Flora", "Frida", "Hana",
    "Harriet", "Helga", "Ida", "Ines", "Irene", "Julia", "Karin", "Kira", "Lara", "Lily", "Lucia", "Mabel",
    "Maria", "Marta", "Molly", "Nadia", "Nina", "Nora", "Olga", "Paula", "Petra", "Ruth", "Stella", "Tilda",
    "Vera", "Wanda", "Zora",
];

/// Given names of men and boys.
pub(super) const HE: [&str; 50] = [
    "Ben", "Emil", "Finn", "Hugo", "Jonas", "Karl", "Otto", "Paul", "Adam", "Albert", "Anton", "Arthur",
    "Bruno", "Carlo", "Conrad", "Daniel", "David", "Edgar", "Eric", "Felix", "Frank", "George", "Gilbert",
    "Hans", "Henry", "Igor", "Ivan", "Jacob", "Jasper", "John", "Leo", "Louis", "Luke", "Magnus", "Marco",
    "Martin", "Milo", "Nathan", "Noah", "Oscar", "Owen", "Peter", "Quentin", "Rufus", "Samuel", "Simon",
    "Theo", "Thomas", "Victor", "Walter",
];

/// What people do for a living.
pub(super) const ROLES: [&str; 32] = [
    "miller",
    "hunter",
    "baker",
    "weaver",
    "potter",
    "fisher",
    "smith",
    "mason",
    "tailor",
    "doctor",
    "painter",
    "teacher",
    "sailor",
    "farmer",
    "fiddler",
    "gardener",
    "shepherd",
    "carpenter",
    "cobbler",
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
    "red", "blue", "green", "yellow", "white", "black", "silver", "golden", "wooden", "tiny", "heavy",
    "round", "purple", "grey", "brown", "orange", "copper", "iron", "glass", "painted", "carved", "polished",
    "dusty", "crooked", "shiny", "striped", "spotted", "plain", "pretty", "rusty", "smooth", "broken",
];

/// Things that can be owned, given, hidden and carried.
pub(super) const OBJECTS: [&str; 64] = [
    "kite", "drum", "bell", "lamp", "key", "book", "hat", "ring", "boat", "basket", "mirror", "flute", "cup",
    "clock", "map", "candle", "lantern", "kettle", "violin", "compass", "necklace", "crown", "coin", "box",
    "bucket", "barrel", "bottle", "bowl", "plate", "spoon", "knife", "jug", "vase", "whistle", "harp",
    "puppet", "doll", "ball", "letter", "feather", "brush", "ribbon", "scarf", "glove", "belt", "cloak",
    "blanket", "pillow", "chair", "stool", "ladder", "rope", "net", "anchor", "wheel", "saddle", "cart",
    "shovel", "axe", "hammer", "needle", "trumpet", "umbrella", "globe",
];

/// First words of the names of places. No two people of a story share one, so that it says which place is meant.
pub(super) const LANDS: [&str; 30] = [
    "Raven", "Stone", "North", "Elm", "Wolf", "Crow", "Fern", "Winter", "Marsh", "Birch", "Ash", "Bear",
    "Copper", "Cherry", "Eagle", "Fox", "Hazel", "Honey", "King", "Linden", "Maple", "Moon", "Oak", "Otter",
    "Pine", "River", "Rose", "South", "Swan", "Thorn",
];

/// Second words of the names of places.
pub(super) const PLACES: [&str; 40] = [
    "Hill", "Bridge", "Mill", "Tower", "Gate", "Well", "Barn", "Harbour", "Garden", "Inn", "Abbey", "Bay",
    "Brook", "Castle", "Chapel", "Cottage", "Cross", "Farm", "Field", "Ford", "Green", "Hall", "House",
    "Island", "Lake", "Lane", "Lodge", "Meadow", "Orchard", "Park", "Pond", "Quarry", "School", "Square",
    "Station", "Street", "Valley", "Wall", "Wharf", "Wood",
];

/// First and second halves of the names of villages.
pub(super) const TOWN_STARTS: [&str; 20] = [
    "Alder", "Bram", "Carls", "Dun", "Eber", "Glen", "Hart", "Ing", "Kel", "Lang", "Mel", "Nor", "Ort",
    "Pel", "Quin", "Rams", "Sel", "Tarn", "Ul", "Wester",
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
