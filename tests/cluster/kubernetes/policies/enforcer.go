package policies

// The enforcer: watches policies, pods and namespaces, and replaces the table when what follows from them has changed.

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

type enforcer struct {
	root                       string
	pods, namespaces, policies cache.SharedIndexInformer
	signal                     chan struct{}

	mutex sync.Mutex
	// By sandbox.
	links map[string]link
	// The last that was seen of pods that hang on a link, by UID: one that is gone from the API may still run.
	known   map[string]*core.Pod
	applied string
}

// NewCommand makes the component.
func NewCommand() *cobra.Command {
	var kubeconfig, root, socket string
	command := &cobra.Command{
		Use:           "network-policies",
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
			ctx := command.Context()
			if ctx == nil {
				ctx = context.Background()
			}
			return run(ctx, client, root, socket)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&root, "root", "", "the directory that holds the pods' links")
	command.Flags().StringVar(&socket, "socket", "", "where CNI's plugin asks")
	return command
}

func run(ctx context.Context, client kubernetes.Interface, root, socket string) error {
	factory := informers.NewSharedInformerFactory(client, 0)
	e := &enforcer{
		root:       root,
		pods:       factory.Core().V1().Pods().Informer(),
		namespaces: factory.Core().V1().Namespaces().Informer(),
		policies:   factory.Networking().V1().NetworkPolicies().Informer(),
		signal:     make(chan struct{}, 1),
		links:      map[string]link{},
		known:      map[string]*core.Pod{},
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := e.load(); err != nil {
		return err
	}
	for _, informer := range []cache.SharedIndexInformer{e.pods, e.namespaces, e.policies} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { e.changed() },
			UpdateFunc: func(any, any) { e.changed() },
			DeleteFunc: func(any) { e.changed() },
		}); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := e.apply(ctx); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		klog.ErrorS(http.Serve(listener, e), "serving CNI has ended")
		os.Exit(1)
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.signal:
		}
		if err := e.apply(ctx); err != nil {
			klog.ErrorS(err, "will try again")
			time.Sleep(time.Second)
			e.changed()
		}
	}
}

func (e *enforcer) changed() {
	select {
	case e.signal <- struct{}{}:
	default:
	}
}

// await waits until the watch has brought the pod, with its labels.
func (e *enforcer) await(ctx context.Context, added link) error {
	for range 500 {
		object, found, err := e.pods.GetStore().GetByKey(added.Namespace + "/" + added.Name)
		if err != nil {
			return err
		}
		if found && string(object.(*core.Pod).UID) == added.UID {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("the API server does not tell of Pod %s/%s with UID %s", added.Namespace, added.Name, added.UID)
}

// state must be called with the mutex held.
func (e *enforcer) state() State {
	state := State{Namespaces: map[string]map[string]string{}}
	for _, object := range e.namespaces.GetStore().List() {
		namespace := object.(*core.Namespace)
		state.Namespaces[namespace.Name] = namespace.Labels
	}
	for _, object := range e.policies.GetStore().List() {
		state.Policies = append(state.Policies, object.(*networking.NetworkPolicy))
	}
	slices.SortFunc(state.Policies, func(a, b *networking.NetworkPolicy) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	known := map[string]*core.Pod{}
	for _, link := range e.links {
		if object, found, _ := e.pods.GetStore().GetByKey(link.Namespace + "/" + link.Name); found && string(object.(*core.Pod).UID) == link.UID {
			known[link.UID] = object.(*core.Pod)
		} else if former, found := e.known[link.UID]; found {
			known[link.UID] = former
		} else {
			// Gone before this process started; its sandbox goes soon, and until then passes for a pod without labels.
			known[link.UID] = &core.Pod{}
		}
		pod := Pod{Namespace: link.Namespace, Name: link.Name, Labels: known[link.UID].Labels, Link: link.Link, Address: link.Address}
		for _, container := range slices.Concat(known[link.UID].Spec.InitContainers, known[link.UID].Spec.Containers) {
			pod.Ports = append(pod.Ports, container.Ports...)
		}
		state.Pods = append(state.Pods, pod)
	}
	e.known = known
	slices.SortFunc(state.Pods, func(a, b Pod) int { return a.Address.Compare(b.Address) })
	return state
}

// apply returns when the kernel has the rules that follow from what is known now.
func (e *enforcer) apply(ctx context.Context) error {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	text := Render(e.state())
	if text == e.applied {
		return nil
	}
	command := exec.CommandContext(ctx, "nft", "-f", "-")
	command.Stdin = strings.NewReader(text)
	var said bytes.Buffer
	command.Stderr = &said
	if err := command.Run(); err != nil {
		return fmt.Errorf("nft: %w: %s\n%s", err, said.String(), text)
	}
	e.applied = text
	return nil
}
