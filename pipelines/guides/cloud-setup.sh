#!/usr/bin/env bash
# Makes what the pipeline needs on Google Cloud, and takes it away again. Without --apply it only says what it would do.
#
#   cloud-setup.sh gke       a bucket, images' repository, accounts, a cluster with Kubeflow Pipelines: see gke.md
#   cloud-setup.sh vertex    a bucket, images' repository and an account for Vertex AI: see vertex.md
#
#   --apply         does it; each command is shown before it runs. What is there already is left as it is
#   --undo          the other way round: takes away what was made, the last first. The bucket stays, with all data and releases
#   --with-bucket   with --undo: deletes the bucket too, with everything in it
#   --own-cluster   takes the cluster that is CONTEXT to kubectl; it is neither made nor deleted
#   --cloud-only    leaves out what is inside the cluster: Kubeflow Pipelines, and who its accounts act as
#   --multi-user    Kubeflow Pipelines is there, for several users: it is not installed; NAMESPACE is a profile's
#
# Variables, with what they are without you: PROJECT and BUCKET (nothing: they have to be set), REGION (us-central1),
# ZONE (REGION-a), NAME (paligemma; of cluster, repository and accounts), POOLS (l4; also v5e-4, v5e-16, or several),
# NAMESPACE (kubeflow) and SERVICE_ACCOUNT (pipeline-runner, with --multi-user default-editor): where runs are and what they
# run as, KFP_VERSION (2.17.0), HOSTS (one; several: for profiles with several hosts), SECRETS (none; names of secrets that
# steps read, e.g. "kaggle webhook", which have to be there), CONTEXT (none; for --own-cluster).
set -euo pipefail

usage() {
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p;}' "$0"
}

fail() {
  echo "cloud-setup.sh: $1" >&2
  exit 2
}

backend='' apply='' undo='' with_bucket='' own_cluster='' multi_user='' cloud_only=''
for argument in "$@"; do
  case "$argument" in
    gke | vertex) backend="$argument" ;;
    --apply) apply=yes ;;
    --undo) undo=yes ;;
    --with-bucket) with_bucket=yes ;;
    --own-cluster) own_cluster=yes ;;
    --cloud-only) cloud_only=yes ;;
    --multi-user) multi_user=yes ;;
    --help) usage; exit 0 ;;
    *) fail "there is no '$argument'; --help says what there is" ;;
  esac
done
[[ -n "$backend" ]] || fail "say where: gke or vertex"
[[ -z "$with_bucket" || -n "$undo" ]] || fail "--with-bucket is for --undo"

PROJECT="${PROJECT:-}" BUCKET="${BUCKET:-}" REGION="${REGION:-us-central1}" NAME="${NAME:-paligemma}"
ZONE="${ZONE:-$REGION-a}" POOLS="${POOLS:-l4}" HOSTS="${HOSTS:-one}" SECRETS="${SECRETS:-}" KFP_VERSION="${KFP_VERSION:-2.17.0}"
if [[ -n "$multi_user" ]]; then
  [[ -n "${NAMESPACE:-}" ]] || fail "set NAMESPACE: with --multi-user it is a profile's"
  SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-default-editor}"
fi
NAMESPACE="${NAMESPACE:-kubeflow}" SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-pipeline-runner}"
if [[ -z "$multi_user" && "$NAMESPACE" != kubeflow ]]; then
  fail "Kubeflow Pipelines for one user is installed into the namespace kubeflow, and runs are there; not in $NAMESPACE"
fi
for variable in PROJECT BUCKET REGION ZONE NAME NAMESPACE SERVICE_ACCOUNT KFP_VERSION; do
  [[ "${!variable}" =~ ^[a-z0-9][a-z0-9._-]*$ ]] || fail "set $variable: it is '${!variable}'"
done
CONTEXT="${CONTEXT:-}"
[[ -z "$own_cluster" || "$CONTEXT" =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] || fail "set CONTEXT, one of: kubectl config get-contexts"
[[ "$HOSTS" == one || "$HOSTS" == several ]] || fail "HOSTS is '$HOSTS': it is one or several"
for name in $POOLS $SECRETS; do
  [[ "$name" =~ ^[A-Za-z0-9_-]+$ ]] || fail "'$name' is no name"
done

cd "$(dirname "$0")/../.."

# Each thing: what it is for, a command that succeeds if it is there (empty: making it twice is the same as once), the command
# that makes it, and the one that takes it away (empty: it stays, or goes with another thing; the reason is in its place).
why=() there=() make=() take=()
thing() {
  why+=("$1") there+=("$2") make+=("$3") take+=("$4")
}

account="$NAME@$PROJECT.iam.gserviceaccount.com"
nodes="$NAME-nodes@$PROJECT.iam.gserviceaccount.com"

# make_account NAME ADDRESS WHY
make_account() {
  thing "$3" "gcloud iam service-accounts describe $2" "gcloud iam service-accounts create $1" \
    "gcloud iam service-accounts delete $2 --quiet"
}

# bind WHY KIND WHAT MEMBER ROLE: gives a role on a thing of a kind of gcloud's
bind() {
  thing "$1" '' "gcloud $2 add-iam-policy-binding $3 --member=serviceAccount:$4 --role=$5" \
    "gcloud $2 remove-iam-policy-binding $3 --member=serviceAccount:$4 --role=$5"
}

services="$([[ "$backend" == gke ]] && echo container || echo aiplatform).googleapis.com"
thing 'the services that are used' '' \
  "gcloud services enable $services artifactregistry.googleapis.com secretmanager.googleapis.com iam.googleapis.com" \
  '# the services stay enabled: something else may use them, and they cost nothing'
thing 'the bucket of data, artifacts and releases' "gcloud storage buckets describe gs://$BUCKET" \
  "gcloud storage buckets create gs://$BUCKET --location=$REGION --uniform-bucket-level-access" \
  "$([[ -n "$with_bucket" ]] && echo "gcloud storage rm --recursive gs://$BUCKET" || echo "# gs://$BUCKET stays; --with-bucket deletes it")"
thing "the images' repository" "gcloud artifacts repositories describe $NAME --location=$REGION" \
  "gcloud artifacts repositories create $NAME --repository-format=docker --location=$REGION" \
  "gcloud artifacts repositories delete $NAME --location=$REGION --quiet"
make_account "$NAME" "$account" 'the account that the steps act as'
bind 'steps read data and write artifacts' 'storage buckets' "gs://$BUCKET" "$account" roles/storage.objectAdmin
for secret in $SECRETS; do
  bind "a step reads the secret $secret" secrets "$secret" "$account" roles/secretmanager.secretAccessor
done

if [[ "$backend" == vertex ]]; then
  bind 'the pipeline runs as this account, and makes custom jobs' projects "$PROJECT --condition=None" "$account" roles/aiplatform.user
  bind 'it gives its rights to the custom jobs that it makes' 'iam service-accounts' "$account" "$account" \
    roles/iam.serviceAccountUser
else
  if [[ -z "$own_cluster" ]]; then
    make_account "$NAME-nodes" "$nodes" "the account that the cluster's machines act as"
    bind 'what every machine of a cluster needs' projects "$PROJECT --condition=None" "$nodes" \
      roles/container.defaultNodeServiceAccount
    bind 'the machines pull the images' 'artifacts repositories' "$NAME --location=$REGION" "$nodes" roles/artifactregistry.reader
    at="--zone=$ZONE"
    thing 'the cluster, with machines for the steps that need no accelerator' "gcloud container clusters describe $NAME $at" \
      "gcloud container clusters create $NAME $at --machine-type=e2-standard-8 --num-nodes=2 --workload-pool=$PROJECT.svc.id.goog --service-account=$nodes --disk-size=200" \
      "gcloud container clusters delete $NAME $at --quiet"
    for pool in $POOLS; do
      case "$pool" in
        l4) machine='--machine-type=g2-standard-8 --accelerator=type=nvidia-l4,count=1,gpu-driver-version=latest' most=1 ;;
        v5e-4) machine='--machine-type=ct5lp-hightpu-4t --tpu-topology=2x2' most=1 ;;
        v5e-16) machine='--machine-type=ct5lp-hightpu-4t --tpu-topology=4x4' most=4 ;;
        *) fail "there is no pool '$pool': l4, v5e-4 or v5e-16. Add a line for yours" ;;
      esac
      thing "machines with accelerators: none while nothing trains, $most at most" \
        "gcloud container node-pools describe $pool --cluster=$NAME $at" \
        "gcloud container node-pools create $pool --cluster=$NAME $at $machine --spot --enable-autoscaling --num-nodes=0 --min-nodes=0 --max-nodes=$most --workload-metadata=GKE_METADATA --service-account=$nodes --disk-size=200" \
        "gcloud container node-pools delete $pool --cluster=$NAME $at --quiet"
    done
  fi
fi
if [[ "$backend" == gke && -z "$cloud_only" ]]; then
  if [[ -z "$multi_user" ]]; then
    manifests=github.com/kubeflow/pipelines/manifests/kustomize
    thing 'Kubeflow Pipelines: what belongs to the whole cluster' '' \
      "kubectl apply -k $manifests/cluster-scoped-resources?ref=$KFP_VERSION" \
      "kubectl delete -k $manifests/cluster-scoped-resources?ref=$KFP_VERSION --ignore-not-found"
    thing 'its types are known to the cluster' '' \
      'kubectl wait --for=condition=established --timeout=60s crd/applications.app.k8s.io' '# goes with what belongs to the whole cluster'
    thing 'Kubeflow Pipelines itself' '' "kubectl apply -k $manifests/env/platform-agnostic?ref=$KFP_VERSION" \
      "kubectl delete -k $manifests/env/platform-agnostic?ref=$KFP_VERSION --ignore-not-found"
  fi
  thing 'a step that fails, or loses its machine, is tried again' '' \
    'kubectl patch configmap workflow-controller-configmap --namespace=kubeflow --patch-file=pipelines/kubernetes/workflow-defaults.yaml' \
    '# the patch goes with Kubeflow Pipelines'
  thing 'the controller reads the patch' '' 'kubectl rollout restart deployment workflow-controller --namespace=kubeflow' \
    '# nothing was made'
  for one in "$NAMESPACE/$SERVICE_ACCOUNT" kubeflow/ml-pipeline-ui; do
    reason="$([[ "$one" == */ml-pipeline-ui ]] && echo "KFP's page reads reports from the bucket" || echo 'steps act as the account')"
    bind "$reason" 'iam service-accounts' "$account" "$PROJECT.svc.id.goog[$one]" roles/iam.workloadIdentityUser
    thing "$reason: which account it is" '' \
      "kubectl annotate serviceaccount ${one#*/} --namespace=${one%/*} --overwrite iam.gke.io/gcp-service-account=$account" \
      "kubectl annotate serviceaccount ${one#*/} --namespace=${one%/*} iam.gke.io/gcp-service-account-"
  done
  thing "KFP's page begins anew, as the account" '' 'kubectl rollout restart deployment ml-pipeline-ui --namespace=kubeflow' \
    '# nothing was made'
  if [[ "$HOSTS" == several ]]; then
    trainer='https://github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0'
    thing 'Kubeflow Trainer, which starts several hosts together' '' "kubectl apply --server-side -k $trainer" \
      "kubectl delete -k $trainer --ignore-not-found"
    thing 'how it starts our processes' '' 'kubectl apply --server-side -f pipelines/kubernetes/training-runtime.yaml' \
      'kubectl delete -f pipelines/kubernetes/training-runtime.yaml --ignore-not-found'
    thing 'steps may make its jobs: the right' "kubectl get role trainjobs --namespace=$NAMESPACE" \
      "kubectl create role trainjobs --namespace=$NAMESPACE --verb=create,get,patch,delete --resource=trainjobs.trainer.kubeflow.org" \
      "kubectl delete role trainjobs --namespace=$NAMESPACE --ignore-not-found"
    thing 'steps may make its jobs: whose right' "kubectl get rolebinding trainjobs --namespace=$NAMESPACE" \
      "kubectl create rolebinding trainjobs --namespace=$NAMESPACE --role=trainjobs --serviceaccount=$NAMESPACE:$SERVICE_ACCOUNT" \
      "kubectl delete rolebinding trainjobs --namespace=$NAMESPACE --ignore-not-found"
  fi
fi

# show COMMAND: as it can be typed into any shell
show() {
  local word words line=''
  read -ra words <<<"$1"
  for word in "${words[@]}"; do
    if [[ "$word" == *[][?*]* ]]; then
      word="'$word'"
    fi
    line+="$word "
  done
  echo "${line% }"
}

# do_it COMMAND. All that is in it was checked above: nothing has a space or a quote.
do_it() {
  local words
  read -ra words <<<"$1"
  "${words[@]}"
}

# run WHY COMMAND: shows a command, and runs it with --apply
run() {
  printf '\n# %s\n' "$1"
  show "$2"
  if [[ -n "$apply" ]]; then
    do_it "$2"
  fi
}

connect() {
  if [[ -n "$own_cluster" ]]; then
    run "kubectl's commands are for this cluster" "kubectl config use-context $CONTEXT"
  else
    run "kubectl's commands are for this cluster" "gcloud container clusters get-credentials $NAME --zone=$ZONE"
  fi
}

export CLOUDSDK_CORE_PROJECT="$PROJECT"
echo "export CLOUDSDK_CORE_PROJECT=$PROJECT"
failed=0 connected='' unreachable=''
if [[ -z "$undo" ]]; then
  for ((number = 0; number < ${#make[@]}; number++)); do
    if [[ -z "$connected" && "${make[number]}" == kubectl* ]]; then
      connect
      connected=yes
    fi
    if [[ -n "$apply" && -n "${there[number]}" ]] && do_it "${there[number]}" >/dev/null 2>&1; then
      printf '\n# %s: is there\n' "${why[number]}"
    else
      run "${why[number]}" "${make[number]}"
    fi
  done
else
  for ((number = ${#take[@]} - 1; number >= 0; number--)); do
    if [[ "${take[number]}" == kubectl* && -z "$connected" ]]; then
      connected=yes
      connect || unreachable=yes # and no command for it may reach another cluster
    fi
    if [[ "${take[number]}" == '#'* ]]; then
      printf '\n%s\n' "${take[number]}"
    elif [[ "${take[number]}" == kubectl* && -n "$unreachable" ]]; then
      printf '\n# %s: the cluster cannot be reached\n' "${why[number]}"
    elif [[ -n "$apply" && -n "${there[number]}" ]] && ! do_it "${there[number]}" >/dev/null 2>&1; then
      printf '\n# %s: is not there\n' "${why[number]}"
    elif ! run "${why[number]}" "${take[number]}"; then
      failed=$((failed + 1))
      echo '# that failed'
    fi
  done
fi
if [[ -z "$apply" ]]; then
  printf '\n# Nothing was done. With --apply these commands are run, in this order.\n'
elif ((failed)); then
  printf '\n# %d commands failed; what they were to take away may be there still.\n' "$failed"
  exit 1
fi
