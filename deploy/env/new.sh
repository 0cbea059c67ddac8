#!/bin/sh
# Makes the secrets of docker-compose.yml beside this file: one random password a server, known to
# it and, in a file a server, to those parts of QBTC that talk to it. Keeps what is there, so it may
# run again. Needs nothing but a shell.
set -eu
cd "$(dirname "$0")"
umask 077
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# The file that is made last: after a run that was cut short all of them are made anew.
if [ -e qbtc-redis.env ]; then
  echo "deploy/env: secrets are there already; nothing changed" >&2
  exit 0
fi
postgres=$(password)
redis=$(password)
rabbitmq=$(password)
for name in postgres redis rabbitmq apisix qbtc-amqp qbtc-database qbtc-redis; do
  sed -e "s/POSTGRES_SECRET/$postgres/" -e "s/REDIS_SECRET/$redis/" \
    -e "s/RABBITMQ_SECRET/$rabbitmq/" "$name.env.example" >"$name.env"
  echo "deploy/env: made $name.env" >&2
done
