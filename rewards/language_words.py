"""What tells languages apart without a model: their scripts, and the words that every text of a language has.

Function words (articles, pronouns, conjunctions, auxiliaries) make up a third to a half of running text, so a
few dozen of them meet nearly every sentence. Words that several of the languages share count for each.
"""
# ruff: noqa: RUF001 (letters of other alphabets are its subject)

SCRIPTS = {
    "am": "ethiopic", "bn": "bengali", "el": "greek", "gu": "gujarati", "he": "hebrew", "hy": "armenian",
    "ja": "kana", "ka": "georgian", "km": "khmer", "kn": "kannada", "ko": "hangul", "lo": "lao",
    "ml": "malayalam", "my": "myanmar", "pa": "gurmukhi", "si": "sinhala", "ta": "tamil", "te": "telugu",
    "th": "thai", "zh": "cjk",
}  # fmt: skip
"""Language -> the script that it alone has here, as the first word of its letters' Unicode names."""

CHARACTERS_PER_WORD = {"cjk": 2, "kana": 2, "thai": 4, "lao": 4, "khmer": 4, "myanmar": 4}
"""Scripts written without spaces: about so many characters make a word."""

_LATIN = {
    "en": "the of and to in is that it for was with as are be this have from or had by not but what all were when "
    "we there can an your which their if will each about how then them she would so these her into has more two "
    "him see than its now my been who did get our out up they you he on at do because let us need should first "
    "next could must where here also since therefore thus does just only",
    "de": "der die das und ist nicht ein eine einen einem einer zu den dem des mit von für auf im sich als auch es "
    "an werden wird aus er hat dass daß sie nach bei um noch wie über so zum zur war haben nur oder aber wir man "
    "kann wenn ich sind wurde durch da dann also muss müssen weil diese dieser dieses hier was uns unser",
    "fr": "le la les de des du et est un une que qui dans en pour pas sur au aux avec ce cette ces il elle nous "
    "vous ils sont par plus ne se on ou mais comme été être si son sa ses leur donc alors car où c'est "
    "n'est d'un d'une l'on qu'il puis aussi peut doit fait tout tous très faut j'ai",
    "es": "el la los las de del y que en un una es por con para no se su al lo como más pero sus le ya o este esta "
    "estos estas sí porque entre cuando muy sin sobre también me hasta hay donde quien desde todo nos son está "
    "tiene ser fue si entonces luego así cada puede debe pues ahora tenemos",
    "it": "il lo la i gli le di del della dei delle degli e che in un una uno è per con non si da dal dalla nel "
    "nella sono come più ma anche se questo questa questi queste al alla ha ho hanno essere perché quando molto "
    "su ci quindi allora cosa dove ogni così poi può deve abbiamo dobbiamo ora",
    "pt": "o a os as de do da dos das e que em um uma é por com para não se no na nos nas ao como mais mas seu sua "
    "ele ela ou quando muito já eu também só pelo pela até isso entre era depois sem mesmo aos são está tem ser "
    "foi então assim cada pode deve porque agora temos este esta você",
    "nl": "de het een en van is dat in te op voor met niet zijn aan er om ook als dan maar bij door over of uit nog "
    "naar wordt werd heeft hebben ze hij we je dit die deze kan moet zo wat wij ik was worden want omdat dus "
    "eerst hier waar onze",
    "sv": "och i att det som en på är av för med den till inte har de ett om var jag men sig så vi kan från eller "
    "när hade där nu ska skulle också vara denna detta dessa bara efter alla här blir måste vad vår eftersom",
    "pl": "i w na z do nie się to że jest jak o co ale po tak za od czy dla przez był była było są tym jego jej ich "
    "być może przed już tylko więc który która które tego ten ta te my można oraz lub gdy ponieważ aby mamy",
    "cs": "a v na je se že to s z do o k i jako ale za po od pro by jsem jsou být byl byla bylo tak jeho její jak co "
    "když už jen nebo který která které tedy aby podle může musí této tento tato není má máme protože",
    "ro": "și în de la cu pe un o este nu că din care pentru mai sau ce se au fost sunt ca dar prin când până după "
    "fi acest această acestea aceasta dacă trebuie poate avem deci apoi al ale lui atunci fiecare",
    "tr": "ve bir bu da de için ile çok daha ne gibi olarak olan kadar sonra değil ise ya en o ben biz var yok mi "
    "mı her ama veya şey bunu onun göre şimdi önce çünkü hem eğer olduğu olur nasıl",
    "vi": "và của là có không được cho một các những này trong với đã để người khi từ như đến cũng ra về nhiều thì "
    "phải sẽ bạn tôi chúng ta đó nếu vì nên lại rất hai còn theo tại trên",
    "id": "yang dan di dengan untuk dari pada adalah itu ini tidak dalam akan ke bahwa oleh juga saya kita kami "
    "mereka atau ada karena sudah telah dapat bisa lebih jika maka seperti anda sebagai harus satu setiap",
    "fi": "ja on ei että se oli hän mutta ovat ole myös kun niin kuin joka tai jos vain nyt sitten voi ovat olla "
    "tämä nämä sen mitä mukaan koska meidän siitä siis jotka minä me",
    "sw": "na ya wa kwa ni katika la za kuwa hii hiyo si cha kama pia lakini au yake wao hiki ambayo ambao kila "
    "tu sisi wewe mimi ili hivyo baada kabla bila kwamba",
}
_CYRILLIC = {
    "ru": "и в не на что он с как это по но они мы из за то все она так его к у же вы бы для от или если уже был "
    "была было были быть есть когда чтобы этот эта эти тогда который которая которые нам нас нужно можно потому "
    "поэтому также где при только его её их",
    "uk": "і в не на що він з як це по але вони ми із за то всі вона так його до у же ви б для від або якщо вже був "
    "була було були бути є коли щоб цей ця ці тоді який яка які нам нас потрібно можна тому також де при тільки "
    "їх її та й",
    "bg": "и в не на че той с как това по но те ние от за то всички тя така го към у вие би или ако вече беше бяха "
    "да е са се си когато този тази тези тогава който която които нас трябва може защото затова също къде при "
    "само им като още ще",
}
_ARABIC = {
    "ar": "في من على إلى أن هذا هذه التي الذي هو هي كان كانت لا ما مع عن أو ثم قد كل بعد قبل بين إذا لم لن لأن ذلك "
    "تلك حيث كما يكون نحن هناك عند غير أي وهو وهي ولكن",
    "fa": "و در به از که این را با است برای آن یک می ها های شود شده بود تا بر هم نیز خود اما یا اگر باید ما کند کرد "
    "دارد هر چه پس من او شما نیست هستند بین",
    "ur": "کے کی میں ہے اور سے کا کو نے یہ پر ہیں کہ تھا نہیں وہ بھی ایک جو ہو تو اس ان کر کیا ہم اگر لیے تھی تھے "
    "گا گی رہا جب پھر آپ ساتھ",
}
_DEVANAGARI = {
    "hi": "है के में की और से को का यह पर हैं कि था नहीं वह भी एक जो हो तो इस उस कर क्या हम अगर लिए थी थे गया जब फिर "
    "आप साथ ने ही तक अपने कुछ",
    "mr": "आहे आणि च्या मध्ये हे या ते तो ती नाही की होते होता होती आहेत एक करण्यासाठी पण तर जर मी आपण त्या त्यांनी "
    "केले झाले व साठी किंवा म्हणून असे आम्ही का",
    "ne": "छ र को मा छन् यो हो पनि गर्न लागि भने एक त्यो थियो हुन् छैन तर वा यदि म हामी तपाईं उनी गरेको भएको हुन्छ "
    "सँग बाट ले लाई कि गर्नुहोस्",
}
FUNCTION_WORDS = {
    script: {language: frozenset(words.split()) for language, words in languages.items()}
    for script, languages in (
        ("latin", _LATIN),
        ("cyrillic", _CYRILLIC),
        ("arabic", _ARABIC),
        ("devanagari", _DEVANAGARI),
    )
}
"""Script -> language -> its commonest words, for scripts that several of the languages share."""

LANGUAGES = frozenset(SCRIPTS) | {language for group in FUNCTION_WORDS.values() for language in group}
