#!/bin/sh
# Download Broden, the probing set of Network Dissection (about 63,000 images at 224 pixels, labelled), to data/broden.
#
#   ./dlbroden.sh          continues an interrupted download; does nothing when Broden is there
#   ./dlbroden.sh --without-masks   also removes the masks (images/*/*.png), which CLIP-Dissect's release does; NetDissect
#                                   needs them. Also of a Broden that is there already.
#   ./dlbroden.sh --help   shows this text
#
# NEURONYM_BRODEN          where Broden goes                  (default: data/broden beside this script)
# NEURONYM_DATA            the data folder                    (default: data beside this script)
# NEURONYM_BRODEN_URL      where it comes from                (default: the authors' server)
# NEURONYM_BRODEN_SHA256   checksum of the zip, 64 hex digits (default: none)
#
# The authors publish no checksum that we know of, so what is checked by default is that the zip has the length that the
# server announces, when it does, and that each of its members passes its own CRC-32 (unzip -t). That finds accidents,
# not malice: the server speaks plain HTTP. Set NEURONYM_BRODEN_SHA256 if you have a checksum you trust.
#
# NEURONYM_BRODEN_FILES    most files that are unpacked         (default: 1,000,000)
# NEURONYM_BRODEN_BYTES    most bytes that they may have        (default: 16,000,000,000)
#
# A zip with links, with paths that lead out of its folder, or with more than that is not unpacked at all. The SHA-256
# of what was unpacked is printed, to be compared with that of others.
#
# Needs Info-ZIP's unzip, and curl or wget. Broden appears under its final name in one rename, complete or not at all.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
data=${NEURONYM_DATA:-$here/data}
broden=${NEURONYM_BRODEN:-$data/broden}
url=${NEURONYM_BRODEN_URL:-http://netdissect.csail.mit.edu/data/broden1_224.zip}
want=$(printf %s "${NEURONYM_BRODEN_SHA256:-}" | tr 'A-F' 'a-f')
most_files=${NEURONYM_BRODEN_FILES:-1000000}
most_bytes=${NEURONYM_BRODEN_BYTES:-16000000000}
zip=$data/downloads/broden1_224.zip
part=$zip.part
lock=$data/downloads/broden.lock
fresh=$broden.unzipping

say() { printf '%s\n' "dlbroden: $*"; }
fail() { printf '%s\n' "dlbroden: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
size() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

# Length that the server announces for the file behind its redirections, or nothing.
announced() {
    if have curl; then curl -sfIL -- "$url"; else wget --spider --server-response -- "$url" 2>&1; fi |
        tr -d '\r' | sed -n 's/^ *[Cc]ontent-[Ll]ength: *\([0-9][0-9]*\) *$/\1/p' | tail -n 1
}

# One attempt to get the rest of $part; the status is 33 when the server can only send the whole.
fetch() {
    if have curl; then
        if [ -t 2 ]; then bar=--progress-bar; else bar=--no-progress-meter; fi
        curl -fL "$bar" --connect-timeout 30 --speed-limit 1 --speed-time 60 -C - -o "$part" -- "$url"
    else
        if [ -t 2 ]; then bar=--progress=bar; else bar=-nv; fi
        wget "$bar" --tries=1 --timeout=60 -c -O "$part" -- "$url"
    fi
}

# The whole of $zip, in as many attempts as bring new bytes.
download() {
    total=$(announced || true)
    if [ -n "$total" ] && [ "$(size "$part")" -gt "$total" ]; then
        say "what was downloaded before is longer than the file at $url; starting again"
        rm -f -- "$part"
    fi
    restarted=
    while [ -z "$total" ] || [ "$(size "$part")" -ne "$total" ]; do
        before=$(size "$part")
        [ "$before" -eq 0 ] || say "continuing after $before of ${total:-?} bytes"
        status=0
        fetch || status=$?
        if [ "$status" -eq 0 ] && [ -z "$total" ]; then
            say "the server does not announce a length; only the zip itself is checked"
            break
        elif [ "$(size "$part")" -gt "$before" ]; then
            [ "$status" -eq 0 ] || say "interrupted after $(size "$part") bytes"
        elif [ "$status" -eq 33 ] && [ -z "$restarted" ]; then
            say "the server does not continue files; starting again"
            restarted=yes
            rm -f -- "$part"
        else
            fail "could not download $url; run ./dlbroden.sh again to continue, or set NEURONYM_BRODEN_URL to a mirror"
        fi
    done
    mv -- "$part" "$zip"
}

sha256() {
    if have sha256sum; then sha256sum -- "$1" | cut -d ' ' -f 1
    elif have shasum; then shasum -a 256 -- "$1" | cut -d ' ' -f 1
    elif have openssl; then openssl dgst -sha256 -r -- "$1" | cut -d ' ' -f 1
    else fail "checking NEURONYM_BRODEN_SHA256 needs sha256sum, shasum or openssl"; fi
}

# Put a zip that must not be used out of the way, for a look at it, and stop.
reject() {
    mv -f -- "$zip" "$zip.rejected"
    fail "$1; it is now $zip.rejected, and the next run downloads it again"
}

verify() {
    if [ -n "$want" ]; then
        got=$(sha256 "$zip")
        [ "$got" = "$want" ] || reject "the zip has SHA-256 $got, not $want as NEURONYM_BRODEN_SHA256 says"
    fi
    bounded
    unzip -tqq "$zip" >/dev/null 2>&1 </dev/null || reject "the file from $url is not a whole zip"
}

# Refuse, by what the zip says of itself and before anything is written, links, paths out of the folder, and too much.
bounded() {
    told=$(unzip -Z -t -- "$zip" 2>/dev/null </dev/null | sed -n 's/^\([0-9]*\) files*, \([0-9]*\) bytes uncompressed.*/\1 \2/p')
    [ -n "$told" ] || return 0 # no zip, as the test that follows says
    files=${told% *} bytes=${told#* }
    if [ ${#files} -gt 15 ] || [ "$files" -gt "$most_files" ]; then
        reject "the zip has $files files, more than $most_files, which NEURONYM_BRODEN_FILES can raise"
    fi
    if [ ${#bytes} -gt 18 ] || [ "$bytes" -gt "$most_bytes" ]; then
        reject "the zip's files have $bytes bytes, more than $most_bytes, which NEURONYM_BRODEN_BYTES can raise"
    fi
    strange=$(unzip -Z -s -- "$zip" 2>/dev/null </dev/null | sed -n '/^[lbcps]/{p;q;}')
    [ -z "$strange" ] || reject "the zip holds a link or a device, which Broden does not: $strange"
    strange=$(unzip -Z -1 -- "$zip" 2>/dev/null </dev/null |
        sed -n '/^[/\\]/{p;q;};/^[A-Za-z]:/{p;q;};/^\.\.$/{p;q;};/^\.\.[/\\]/{p;q;};/[/\\]\.\.[/\\]/{p;q;};/[/\\]\.\.$/{p;q;}')
    [ -z "$strange" ] || reject "the zip holds a path out of its folder: $strange"
}

# Unzip beside the final place, then rename: the zip's content is in a folder of its own, or at the top.
unpack() {
    rm -rf -- "$fresh"
    mkdir -p -- "$fresh"
    # a file that is longer than the zip says ends here: blocks have 512 bytes, or 1,024 in some shells
    (ulimit -f $((most_bytes / 512 + 1)) && exec unzip -qq "$zip" -d "$fresh" </dev/null) ||
        fail "could not unzip $zip; is the disk full?"
    got=$(sha256 "$zip" 2>/dev/null || true)
    for top in "$fresh" "$fresh/broden1_224"; do
        if [ -d "$top/images" ]; then
            mv -- "$top" "$broden"
            return
        fi
    done
    rm -rf -- "$fresh"
    reject "the zip from $url has no images/ folder and is not Broden"
}

# Remove the pictures of masks, of names like ade20k/ADE_train_00000001_color.png: all .png files, images being .jpg.
remove_masks() {
    [ -n "$bare" ] || return 0
    find "$broden/images" -type f -name '*.jpg' | grep -q . || fail "$broden/images holds no .jpg; nothing is removed"
    count=$(find "$broden/images" -type f -name '*.png' | wc -l | tr -d ' ')
    find "$broden/images" -type f -name '*.png' -exec rm -f -- {} +
    say "removed $count masks; NetDissect needs them, download Broden again for it"
}

bare=
[ $# -le 1 ] || fail "takes one option, got '$*'; see ./dlbroden.sh --help"
case ${1:-} in
'') ;;
--without-masks) bare=yes ;;
-h | --help) sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;;
*) fail "takes --without-masks or nothing, got '$1'; see ./dlbroden.sh --help" ;;
esac
if [ -d "$broden/images" ]; then
    if [ -n "$bare" ]; then remove_masks; else say "Broden is at $broden already; nothing to do"; fi
    exit 0
fi
[ ! -e "$broden" ] || fail "$broden exists but has no images/ in it; move it away and run ./dlbroden.sh again"
have unzip || fail "needs unzip; install it (apt install unzip, brew install unzip) and run again"
have curl || have wget || fail "needs curl or wget; install one (apt install curl, brew install curl) and run again"
case $want in
'') ;;
*[!0-9a-f]*) fail "NEURONYM_BRODEN_SHA256 has to be 64 hex digits, got '$want'" ;;
*) [ ${#want} -eq 64 ] || fail "NEURONYM_BRODEN_SHA256 has to be 64 hex digits, got ${#want}" ;;
esac

for most in "$most_files" "$most_bytes"; do
    case $most in
    '' | *[!0-9]*) fail "NEURONYM_BRODEN_FILES and NEURONYM_BRODEN_BYTES have to be whole numbers, got '$most'" ;;
    *) [ ${#most} -le 15 ] || fail "NEURONYM_BRODEN_FILES and NEURONYM_BRODEN_BYTES have 15 digits at most, got '$most'" ;;
    esac
done

mkdir -p -- "$data/downloads" "$(dirname -- "$broden")"
if ! mkdir -- "$lock" 2>/dev/null; then
    owner=$(cat -- "$lock/pid" 2>/dev/null || true)
    if [ -z "$owner" ] || kill -0 "$owner" 2>/dev/null; then
        fail "another dlbroden.sh is at work (process ${owner:-unknown}); if not, remove $lock"
    fi
    say "a run that did not end (process $owner) left its lock; taking over"
fi
echo $$ >"$lock/pid"
cleanup() { rm -f -- "$lock/pid"; rmdir -- "$lock" 2>/dev/null || true; rm -rf -- "$fresh"; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -f "$zip" ]; then say "using $zip"; else say "downloading $url"; download; fi
verify
say "unzipping"
unpack
rm -f -- "$zip"
remove_masks
[ -z "$got" ] || say "the zip's SHA-256 was $got"
say "done: Broden is at $broden"
