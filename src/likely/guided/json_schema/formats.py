"""Formats of strings as regular expressions: one meaning for the generator and for the validator.

RFC 3339 (date, time, date-time; no leap seconds, years from 1), its appendix A (duration), RFC 5321 (email, without
quoted local parts), RFC 1123 (hostname, ASCII only), RFC 2673 and 4291 (ipv4, ipv6), RFC 4122 (uuid), RFC 3986 (uri),
RFC 6901 (json-pointer).
"""

from __future__ import annotations

import re

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_LONG_MONTH, _SHORT_MONTH = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])", "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
DATE = f"(?:{_YEAR}-(?:{_LONG_MONTH}|{_SHORT_MONTH}|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
_HOUR = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
TIME = rf"{_HOUR}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:[Zz]|[+\-]{_HOUR})"

_TIME_SPAN = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAY_SPAN = "(?:[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?)"
DURATION = f"P(?:[0-9]+W|{_DAY_SPAN}(?:{_TIME_SPAN})?|{_TIME_SPAN})"

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_H16 = "[0-9A-Fa-f]{1,4}"


def _ipv6() -> str:
    """Eight groups, or fewer around one `::`; the last two may be an IPv4 address."""
    ways = [f"(?:{_H16}:){{7}}{_H16}", f"(?:{_H16}:){{6}}{IPV4}"]
    for left in range(8):
        start = "" if left == 0 else f"{_H16}(?::{_H16}){{{left - 1}}}"
        right = 7 - left  # groups that may follow: :: stands for at least one
        ways.append(f"{start}::" + (f"(?:{_H16}(?::{_H16}){{0,{right - 1}}})?" if right else ""))
        if right >= 2:
            ways.append(f"{start}::(?:{_H16}:){{0,{right - 2}}}{IPV4}")
    return f"(?:{'|'.join(ways)})"


IPV6 = _ipv6()

_LETTER = "[0-9A-Za-z]"
# at most 63 characters, no hyphen at an end, nor at both the third and the fourth place (those are encoded names)
_LABEL = (
    f"(?:{_LETTER}|{_LETTER}{_LETTER}|{_LETTER}[0-9A-Za-z\\-]{{1,2}}{_LETTER}|"
    f"{_LETTER}[0-9A-Za-z\\-](?:{_LETTER}[0-9A-Za-z\\-]|\\-{_LETTER})[0-9A-Za-z\\-]{{0,58}}{_LETTER})"
)
HOSTNAME = rf"{_LABEL}(?:\.{_LABEL})*"
HOSTNAME_LENGTH = 253

_ATOM = r"[0-9A-Za-z!#$%&'*+\-/=?\^_`{|}~]+"
_PLAIN_LABEL = "[0-9A-Za-z](?:[0-9A-Za-z\\-]{0,61}[0-9A-Za-z])?"
EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@(?:{_PLAIN_LABEL}(?:\.{_PLAIN_LABEL})*|\[{IPV4}\])"
UUID = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"

_UNRESERVED = r"0-9A-Za-z\-._~!$&'()*+,;="
_PERCENT = "%[0-9A-Fa-f]{2}"
_SEGMENT = f"(?:[{_UNRESERVED}:@]|{_PERCENT})"
_AUTHORITY = rf"(?:(?:[{_UNRESERVED}:]|{_PERCENT})*@)?(?:\[{IPV6}\]|(?:[{_UNRESERVED}]|{_PERCENT})*)(?::[0-9]*)?"
_PATH = f"(?://{_AUTHORITY}(?:/{_SEGMENT}*)*|/(?:{_SEGMENT}+(?:/{_SEGMENT}*)*)?|{_SEGMENT}+(?:/{_SEGMENT}*)*|)"
_TAIL = rf"(?:[{_UNRESERVED}:@/?]|{_PERCENT})*"
URI = rf"[A-Za-z][0-9A-Za-z+\-.]*:{_PATH}(?:\?{_TAIL})?(?:#{_TAIL})?"

FORMATS: dict[str, str] = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}[Tt]{TIME}",
    "duration": DURATION,
    "email": EMAIL,
    "hostname": HOSTNAME,
    "ipv4": IPV4,
    "ipv6": IPV6,
    "uuid": UUID,
    "uri": URI,
    "json-pointer": "(?:/(?:[^~/]|~[01])*)*",
}


def has_format(name: str, text: str) -> bool:
    """Whether the text has one of FORMATS."""
    if name == "hostname" and len(text) > HOSTNAME_LENGTH:
        return False
    return re.fullmatch(FORMATS[name], text) is not None
