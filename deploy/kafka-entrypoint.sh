#!/bin/sh
# Start Kafka with the settings found in the environment, named as the official image names them:
# KAFKA_LOG_DIRS is log.dirs; two underscores stand for one, three for a dash.
set -euf # no globbing: java expands the * of the class path itself
config=/tmp/server.properties
env | grep '^KAFKA_' | while IFS='=' read -r name value; do
  key=$(echo "${name#KAFKA_}" | tr 'A-Z' 'a-z' | sed -e 's/___/-/g' -e 's/__/~/g' -e 's/_/./g' -e 's/~/_/g')
  echo "$key=$value"
done > "$config"
kafka="java -Xmx${HEAP:-400m} -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp /opt/kafka/jars/*"
$kafka kafka.tools.StorageTool format --ignore-formatted --cluster-id="$CLUSTER_ID" -c "$config"
exec $kafka kafka.Kafka "$config"
