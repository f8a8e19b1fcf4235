"""Which buildings Taskonomy's splits train, validate and test on (its `splits_taskonomy.zip`)."""

_NAMES = {
    "tiny": {
        "train": (
            "hanson merom klickitat onaga leonardo marstons newfields pinesdale lakeville cosmos benevolence "
            "pomaria tolstoy shelbyville allensville wainscott beechwood coffeen stockman hiteman woodbine "
            "lindenwood forkland mifflinburg ranchester"
        ),
        "val": ("wiconisco corozal collierville markleeville darden"),
        "test": ("ihlen muleshoe uvalda noxapater mcdade"),
    },
    "medium": {
        "train": (
            "hanson merom goodfield eagan adairsville castor klickitat cottonport tyler sugarville martinville "
            "chilhowie silas lynchburg tokeland onaga frankfort goodyear albertville andover airport rogue ancor "
            "leonardo maida marstons athens newfields broseley irvine pinesdale tilghmanton goodwine hildebran "
            "winooski lakeville cosmos goffs sunshine globe benevolence emmaus pomaria neibert parole tolstoy "
            "shelbyville potterville rosser allensville springerville nuevo stilwell browntown readsboro "
            "shelbiana wainscott arkansaw bonnie beechwood hominy churchton coffeen willow timberon bohemia "
            "micanopy hillsdale wilseyville kemblesville thrall bonesteel annona stockman soldier neshkoro "
            "newcomb byers oyens victorville pamelia marland hiteman sussex bautista highspire woodbine sweatman "
            "clairton touhy lindenwood anaheim duarte musicks forkland mifflinburg hainesburg maugansville "
            "ranchester"
        ),
        "val": (
            "hortense southfield wiconisco gravelly hordville corozal swormville collierville pearce pablo "
            "pittsburg markleeville sands kobuk westfield wyldwood swisshome scioto waipahu darden"
        ),
        "test": (
            "brinnon ihlen darrtown cousins muleshoe uvalda donaldson poipu rockport cauthron german edson wando "
            "noxapater mcdade helton natural cochranton losantville"
        ),
    },
}
SPLITS = {split: {part: names.split() for part, names in parts.items()} for split, parts in _NAMES.items()}
