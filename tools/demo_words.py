"""Word tables of the demo model's corpus: written for it, no text taken from anywhere."""


def listed(text: str) -> tuple[str, ...]:
    """Entries of a table: separated by `|` where one holds a space, else by blanks."""
    return tuple(text.split("|") if "|" in text else text.split())


def articles(text: str) -> str:
    """`a` before a vowel becomes `an`."""
    tokens = text.split(" ")
    for index, token in enumerate(tokens[:-1]):
        if token in ("a", "A") and tokens[index + 1][:1].lower() in "aeiou":
            tokens[index] = token + "n"
    return " ".join(tokens)


HE = listed(
    "Tom Max Leo Ben Sam Jack Oscar Felix Hugo Noah Adam Paul Peter Oliver Finn Theo David "
    "Omar Ivan Ken"
)
SHE = listed(
    "Mia Anna Lily Emma Nora Ruby Zoe Ella Sara Lucy Clara Alice Rosa Maya Ida Jane Mary "
    "Eva Lena Kim"
)
NAMES = (*HE, *SHE)

ANIMALS = listed(
    "fox cat dog rabbit bear mouse owl frog horse duck wolf pig sheep goat cow hen lion tiger "
    "elephant monkey turtle fish bird bee squirrel hedgehog penguin whale snail crow deer "
    "kitten puppy"
)
PEOPLE = listed(
    "knight princess prince king queen wizard witch farmer baker sailor pirate teacher doctor girl "
    "boy dragon robot giant fairy gardener painter fisherman cook child traveller"
)
HEROES = (*ANIMALS, *PEOPLE)
IS_HE = {
    "prince": True, "king": True, "wizard": True, "boy": True, "fisherman": True,
    "princess": False, "queen": False, "witch": False, "girl": False, "fairy": False, "hen": False,
}  # fmt: skip
HERO_ADJECTIVES = listed(
    "little brave kind clever shy curious happy lonely young old hungry tired gentle "
    "cheerful small quiet"
)
COLOURS = listed("red blue green yellow white black brown orange purple pink grey golden")
THINGS = listed(
    "ball key hat book lamp kite stone basket cup ring bell boat map box scarf coat button spoon "
    "drum blanket lantern shell feather coin flute"
)
PLACES = listed(
    "the forest|the garden|the old mill|the village|the river|the hill|the beach|the market|"
    "the mountain|the lake|the farm|the castle|the meadow|the harbour|the bridge|the valley"
)
FOODS = listed(
    "apples bread soup cake honey cheese berries pears nuts pancakes carrots pie rice cookies"
)
WEATHERS = listed("sunny rainy windy cold warm snowy foggy bright quiet stormy")

FRUITS = listed("apple banana orange pear plum cherry grape lemon peach melon mango strawberry")
VEGETABLES = listed("carrot potato tomato onion pea bean cabbage pumpkin cucumber spinach")
CITIES = listed(
    "Paris London Berlin Rome Madrid Tokyo Oslo Vienna Prague Lisbon Cairo Boston Chicago Sydney "
    "Dublin Athens Warsaw Delhi Seattle Toronto Munich Geneva Milan Moscow Lima Seoul Beijing"
)
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listed(
    "January February March April May June July August September October November December"
)
SEASONS = listed("spring summer autumn winter")
PLANETS = listed("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")
NUMBER_WORDS = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
JOBS = listed("teacher doctor cook painter farmer driver nurse writer baker singer pilot engineer")
HOBBIES = listed("reading swimming cooking painting singing running chess football dancing music")

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "England": "London", "the United Kingdom": "London",
    "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Poland": "Warsaw", "Austria": "Vienna", "Switzerland": "Bern",
    "Belgium": "Brussels", "the Netherlands": "Amsterdam", "Greece": "Athens",
    "Turkey": "Ankara", "Russia": "Moscow", "Ukraine": "Kyiv", "Hungary": "Budapest",
    "Romania": "Bucharest", "Bulgaria": "Sofia", "Croatia": "Zagreb", "Serbia": "Belgrade",
    "Iceland": "Reykjavik", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "South Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Indonesia": "Jakarta",
    "Australia": "Canberra", "New Zealand": "Wellington", "Canada": "Ottawa",
    "the United States": "Washington", "the USA": "Washington", "Mexico": "Mexico City",
    "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima",
    "Colombia": "Bogota", "Cuba": "Havana", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Morocco": "Rabat", "Nigeria": "Abuja", "Ghana": "Accra", "Iran": "Tehran",
    "Iraq": "Baghdad", "Israel": "Jerusalem", "the Czech Republic": "Prague",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "happy": "sad", "fast": "slow",
    "old": "young", "new": "old", "light": "dark", "high": "low", "open": "closed", "wet": "dry",
    "full": "empty", "hard": "soft", "rich": "poor", "strong": "weak", "long": "short",
    "good": "bad", "left": "right", "early": "late", "loud": "quiet", "clean": "dirty",
    "first": "last", "in": "out", "on": "off", "yes": "no", "true": "false", "heavy": "light",
    "thick": "thin", "win": "lose", "start": "stop", "love": "hate", "black": "white",
    "small": "big", "cold": "hot", "sad": "happy", "slow": "fast", "dark": "light",
    "tall": "short", "near": "far", "warm": "cool", "easy": "difficult", "brave": "afraid",
}  # fmt: skip
THING_COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "coal": "black",
    "blood": "red", "the sun": "yellow", "a lemon": "yellow", "a tomato": "red", "milk": "white",
    "a carrot": "orange", "an elephant": "grey", "chocolate": "brown", "a leaf": "green",
    "the sea": "blue", "a crow": "black", "a frog": "green", "a fox": "red", "a strawberry": "red",
    "the night": "black", "a pumpkin": "orange", "a flamingo": "pink", "a cloud": "white",
}  # fmt: skip
SOUNDS = {
    "dog": "Woof", "cat": "Meow", "cow": "Moo", "duck": "Quack", "sheep": "Baa", "pig": "Oink",
    "lion": "Roar", "owl": "Hoo", "bee": "Buzz", "mouse": "Squeak", "frog": "Croak",
    "horse": "Neigh", "hen": "Cluck", "wolf": "Howl", "snake": "Hiss", "bird": "Tweet",
}  # fmt: skip
BABIES = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal",
    "pig": "piglet", "duck": "duckling", "hen": "chick", "bear": "cub", "lion": "cub",
    "goat": "kid", "frog": "tadpole", "deer": "fawn", "swan": "cygnet", "owl": "owlet",
}  # fmt: skip
LEGS = {
    "dog": "four", "cat": "four", "spider": "eight", "bird": "two", "bee": "six", "horse": "four",
    "fish": "no", "snake": "no", "ant": "six", "cow": "four", "duck": "two", "frog": "four",
    "mouse": "four", "hen": "two", "snail": "no", "lion": "four", "elephant": "four",
}  # fmt: skip
FACTS = {
    "cats": "Cats sleep for most of the day and see very well in the dark.",
    "dogs": "Dogs have a very good nose and like to live with people.",
    "bees": "Bees make honey and visit many flowers every day.",
    "the sun": "The sun is a star, and it gives us light and warmth.",
    "the moon": "The moon goes around the Earth in about one month.",
    "owls": "Owls hunt at night and can turn their heads very far.",
    "water": "Water freezes at 0 degrees Celsius and boils at 100 degrees Celsius.",
    "elephants": "Elephants are the largest animals that live on land.",
    "whales": "Whales live in the sea, but they breathe air.",
    "trees": "Trees drink water with their roots and grow towards the light.",
    "snow": "Snow is made of small crystals of ice.",
    "penguins": "Penguins are birds that cannot fly, but they swim very well.",
    "fish": "Fish live in water and breathe with gills.",
    "horses": "Horses can sleep while they stand.",
    "honey": "Honey is made by bees, and it keeps for a very long time.",
    "rain": "Rain is water that falls from the clouds.",
    "frogs": "Frogs start their lives in water as tadpoles.",
    "books": "Books keep stories and knowledge for those who read them.",
    "stars": "Stars are very big and very far away, so they look small.",
    "the Earth": "The Earth is a planet, and it goes around the sun in one year.",
    "bread": "Bread is made of flour, water, salt and often yeast.",
    "rivers": "Rivers carry water from the hills to the sea.",
    "turtles": "Turtles carry a hard shell and can live for many years.",
    "wolves": "Wolves live in groups and howl to find each other.",
    "foxes": "Foxes are clever animals with red fur and a long tail.",
    "space": "Space is very large, very cold and almost empty.",
    "robots": "Robots are machines that do work by themselves.",
    "computers": "Computers follow programs and work with numbers very quickly.",
}  # fmt: skip
RHYMES = {
    "cat": "hat", "dog": "frog", "house": "mouse", "tree": "bee", "star": "car", "moon": "spoon",
    "light": "night", "day": "play", "sun": "fun", "book": "cook", "king": "ring", "fish": "dish",
    "boat": "coat", "bell": "shell", "cake": "lake", "rain": "train", "fox": "box", "hill": "mill",
}  # fmt: skip
JOKES = (
    "Why did the bee get married? Because he found his honey!",
    "What do you call a fish without an eye? A fsh!",
    "Why did the book go to the doctor? It had a problem with its spine!",
    "What is a cat's favourite colour? Purr-ple!",
    "Why is six afraid of seven? Because seven eight nine!",
    "What do you call a sleeping bull? A bulldozer!",
    "Why did the robot cross the road? It was programmed to do so!",
)
SIZES = listed("ant bee mouse frog cat dog sheep cow horse elephant whale")
"""From small to large."""

POSITIVE = listed(
    "wonderful great lovely excellent fantastic delicious beautiful perfect amazing good"
)
NEGATIVE = listed("terrible awful bad horrible boring disgusting broken ugly disappointing slow")

TOPICS = listed(
    "quantum physics|the French Revolution|photosynthesis|the stock market|machine learning|"
    "black holes|World War II|the Roman Empire|philosophy|calculus|chemistry|genetics|democracy|"
    "inflation|blockchain|bitcoin|neural networks|climate change|the internet|Shakespeare|"
    "Einstein|Napoleon|the Renaissance|jazz|classical music|football|the Olympic Games|law|taxes|"
    "medicine|vaccines|nuclear power|electricity|gravity|relativity|evolution|dinosaurs|volcanoes|"
    "grammar|Latin|economics|marketing|psychology|astronomy|algebra|geometry|statistics|history|"
    "politics|religion|art|architecture|engineering|Linux|Python|JavaScript|databases|Docker|"
    "Kubernetes|CUDA|transformers|GPUs|the human brain|DNA|biology|poetry|cryptography|compilers|"
    "the universe|the meaning of life|consciousness|love|money|the president|Amazon|Google|"
    "recursion|binary search|a linked list|the Fibonacci numbers|attention|tokenizers|"
    "the weather on Mars|insurance|cars|airplanes|guitars|basketball|chess openings|movies"
)
