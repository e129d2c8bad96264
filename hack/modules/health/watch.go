package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/cli-utils/pkg/kstatus/polling/event"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/cli-utils/pkg/kstatus/watcher"
	"sigs.k8s.io/cli-utils/pkg/object"
)

// Seen is what the watcher of kstatus says of an object at one time.
type Seen struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Health
}

// watch prints what the watcher of kstatus says of each object of a list from now on, a line each time that it says something else, and
// ends once each is current or has failed. That all are watched is told by an empty line.
func watch(limit string) error {
	patience, err := time.ParseDuration(limit)
	if err != nil {
		return err
	}
	objects, err := given()
	if err != nil {
		return err
	}
	var wanted object.ObjMetadataSet
	for _, item := range objects {
		wanted = append(wanted, object.UnstructuredToObjMetadata(&item))
	}
	configuration, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(configuration)
	if err != nil {
		return err
	}
	known, err := discovery.NewDiscoveryClientForConfig(configuration)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(known))
	limited, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return tell(watcher.NewDefaultStatusWatcher(client, mapper).Watch(limited, wanted, watcher.Options{}), len(wanted))
}

// tell prints the events until each of so many objects is current or has failed.
func tell(events <-chan event.Event, count int) error {
	last := map[object.ObjMetadata]Health{}
	settled := func() (count int) {
		for _, health := range last {
			if health.Status == string(status.CurrentStatus) || health.Status == string(status.FailedStatus) {
				count++
			}
		}
		return count
	}
	for one := range events {
		switch one.Type {
		case event.ErrorEvent:
			return one.Error
		case event.SyncEvent:
			fmt.Println()
		case event.ResourceUpdateEvent:
			if one.Resource.Error != nil {
				return fmt.Errorf("%s: %w", one.Resource.Identifier, one.Resource.Error)
			}
			health := Health{string(one.Resource.Status), one.Resource.Message}
			if last[one.Resource.Identifier] == health {
				continue
			}
			last[one.Resource.Identifier] = health
			seen := Seen{one.Resource.Identifier.GroupKind.Kind, one.Resource.Identifier.Name, health}
			if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
				return err
			}
			if settled() == count {
				return nil
			}
		}
	}
	return errors.New("not all of it was current, or had failed, in time")
}
