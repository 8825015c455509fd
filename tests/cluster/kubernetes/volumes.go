// A dynamic volume provisioner: a directory per claim, on the node that the scheduler chose.
// All nodes are this machine, so it makes and removes the directories itself, with no helper pods:
// a claim is bound in a few milliseconds.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

const (
	provisionerName        = "kiln.build/local-directory"
	provisionedBy          = "pv.kubernetes.io/provisioned-by"
	selectedNode           = "volume.kubernetes.io/selected-node"
	storageProvisioner     = "volume.kubernetes.io/storage-provisioner"
	betaStorageProvisioner = "volume.beta.kubernetes.io/storage-provisioner"
)

type provisioner struct {
	client  kubernetes.Interface
	root    string
	claims  cache.SharedIndexInformer
	volumes cache.SharedIndexInformer
	queue   workqueue.TypedRateLimitingInterface[string]
}

func newVolumeProvisionerCommand() *cobra.Command {
	var kubeconfig, root string
	command := &cobra.Command{
		Use:           "volume-provisioner",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			return runProvisioner(command.Context(), client, root)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&root, "root", "", "the directory that holds the volumes")
	return command
}

func runProvisioner(ctx context.Context, client kubernetes.Interface, root string) error {
	if ctx == nil {
		ctx = context.Background()
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	p := &provisioner{
		client:  client,
		root:    root,
		claims:  factory.Core().V1().PersistentVolumeClaims().Informer(),
		volumes: factory.Core().V1().PersistentVolumes().Informer(),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, 10*time.Second)),
	}
	for _, informer := range []cache.SharedIndexInformer{p.claims, p.volumes} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    p.enqueue,
			UpdateFunc: func(_, object any) { p.enqueue(object) },
		}); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		key, stopped := p.queue.Get()
		if stopped {
			return nil
		}
		if err := p.reconcile(ctx, key); err != nil {
			klog.ErrorS(err, "will try again", "object", key)
			p.queue.AddRateLimited(key)
		} else {
			p.queue.Forget(key)
		}
		p.queue.Done(key)
	}
}

// Claims are queued as namespace/name, volumes as name.
func (p *provisioner) enqueue(object any) {
	if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
		p.queue.Add(key)
	}
}

func (p *provisioner) reconcile(ctx context.Context, key string) error {
	if object, found, err := p.claims.GetStore().GetByKey(key); err != nil {
		return err
	} else if found {
		return p.provision(ctx, object.(*core.PersistentVolumeClaim))
	}
	if object, found, err := p.volumes.GetStore().GetByKey(key); err != nil {
		return err
	} else if found {
		return p.remove(ctx, object.(*core.PersistentVolume))
	}
	return nil
}

func (p *provisioner) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	mine := claim.Annotations[storageProvisioner] == provisionerName || claim.Annotations[betaStorageProvisioner] == provisionerName
	node := claim.Annotations[selectedNode]
	if !mine || node == "" || claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := p.client.StorageV1().StorageClasses().Get(ctx, *claim.Spec.StorageClassName, meta.GetOptions{})
	if err != nil {
		return err
	}
	name := "pvc-" + string(claim.UID)
	volume := p.volume(name, node, claim, class)
	// Like most disks when new: root's, and nobody else may write.
	if err := os.MkdirAll(volume.Spec.Local.Path, 0o755); err != nil {
		return err
	}
	if _, err := p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{}); err != nil && !errors.IsAlreadyExists(err) {
		return err
	}
	klog.InfoS("provisioned", "claim", klog.KObj(claim), "volume", name, "node", node)
	return nil
}

func (p *provisioner) volume(name, node string, claim *core.PersistentVolumeClaim, class *storage.StorageClass) *core.PersistentVolume {
	policy := core.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	mode := core.PersistentVolumeFilesystem
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisionerName}},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    &mode,
			StorageClassName:              class.Name,
			PersistentVolumeReclaimPolicy: policy,
			// A local volume, not a hostPath: only there does the kubelet honour fsGroup.
			PersistentVolumeSource: core.PersistentVolumeSource{
				Local: &core.LocalVolumeSource{Path: filepath.Join(p.root, node, name)},
			},
			ClaimRef: &core.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{
				NodeSelectorTerms: []core.NodeSelectorTerm{{
					MatchExpressions: []core.NodeSelectorRequirement{{
						Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node},
					}},
				}},
			}},
		},
	}
}

func (p *provisioner) remove(ctx context.Context, volume *core.PersistentVolume) error {
	if volume.Annotations[provisionedBy] != provisionerName || volume.Spec.Local == nil ||
		volume.Status.Phase != core.VolumeReleased || volume.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimDelete {
		return nil
	}
	path := volume.Spec.Local.Path
	if inside, err := filepath.Rel(p.root, path); err != nil || !filepath.IsLocal(inside) || inside == "." {
		return fmt.Errorf("%s is not below %s", path, p.root)
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{}); err != nil && !errors.IsNotFound(err) {
		return err
	}
	klog.InfoS("removed", "volume", volume.Name)
	return nil
}
