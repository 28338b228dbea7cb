#!/usr/bin/env bash
# Builds the container image from a static binary: image.sh [TAG] makes localhost/portcullis:TAG (default "dev")
# and gives the same image a second tag that changes with its contents, which it prints: a Deployment that
# names that one is rolled out anew exactly when the image is another.
# PROFILE=fast (the default) is for tests, PROFILE=release for releases: at most 25 MiB.
set -euo pipefail
# shellcheck source=e2e/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/kind/lib.sh"
cd "$REPO_DIR"
tag=${1:-dev} profile=${PROFILE:-fast}
image=localhost/portcullis:$tag
limit=$((25 * 1024 * 1024))

"$KIND_DIR/dockerd.sh" up
host=$(rustc -vV | sed -n 's/^host: //p')
say "building the static binary (profile $profile)"
# With --target these flags do not reach build scripts and macros, which could not be linked so.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile "$profile" --target "$host" --bin portcullis

lock image
context=target/image
rm -rf "$context"
mkdir -p "$context"
cp "target/$host/$profile/portcullis" "$context/portcullis"
cp /etc/ssl/certs/ca-certificates.crt "$context/ca-certificates.crt"
printf 'portcullis:x:65532:65532::/nonexistent:/nonexistent\n' >"$context/passwd"
printf 'portcullis:x:65532:\n' >"$context/group"
chmod 0755 "$context/portcullis"
chmod 0644 "$context/ca-certificates.crt" "$context/passwd" "$context/group"
# The classic builder needs neither buildx nor a frontend image.
DOCKER_BUILDKIT=0 docker build -q --network none -t "$image" -f Containerfile "$context" >/dev/null
size=$(docker image inspect -f '{{.Size}}' "$image")
# The limit is for what is shipped: without link-time optimization the same code takes half as much again.
if [ "$profile" = release ] && [ "$size" -gt "$limit" ]; then die "$image has $size bytes; at most $limit are allowed"; fi
id=$(docker image inspect -f '{{.Id}}' "$image")
id=${id#sha256:}
unique=$tag-${id:0:12}
docker tag "$image" "localhost/portcullis:$unique"
# Earlier builds under the same tag are of no use to anyone.
docker image ls --filter "reference=localhost/portcullis:$tag-*" --format '{{.Repository}}:{{.Tag}}' |
  grep -vxF "localhost/portcullis:$unique" | xargs -r docker rmi >/dev/null 2>&1 || true
say "built $image (also :$unique), $((size / 1024)) KiB"
echo "$unique"
