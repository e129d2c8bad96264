// Command health says what those who apply objects from Git make of them: kstatus, Flux's expressions, and Argo CD's health
// checks, each by the library that really decides.
//
//	health ask ARGO FLUX < OBJECT-OR-LIST   prints a JSON list: of each object its kind and name, and what kstatus, argo and flux
//	                                        say. ARGO is a directory like Argo CD's resource_customizations; FLUX a file with
//	                                        a Kustomization's healthCheckExprs
//	health test ARGO                        runs the tests of such a directory (health_test.yaml), as Argo CD's own do
//	health watch LIMIT < LIST               watches the objects of a list, in the cluster of KUBECONFIG, with the watcher of kstatus until each is
//	                                        current or has failed, LIMIT at most; prints a line of JSON each time that it says
//	                                        something else, and an empty line once it watches
//	health release RELEASE < OBJECT-OR-LIST reads the file RELEASE, a HelmRelease of Flux, and refuses fields that this has not;
//	                                        prints a JSON list: of each object what kstatus says, and what its healthCheckExprs
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	helm "github.com/fluxcd/helm-controller/api/v2"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

// Health is what one of them says.
type Health struct {
	Status  string `json:"status"`
	Message string `json:"message,omitempty"`
}

// Answer is what is said of one object.
type Answer struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	Kstatus Health `json:"kstatus"`
	Argo    Health `json:"argo"`
	Flux    Health `json:"flux"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "health:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 3 && arguments[0] == "ask":
		return ask(arguments[1], arguments[2])
	case len(arguments) == 2 && arguments[0] == "test":
		return test(arguments[1])
	case len(arguments) == 2 && arguments[0] == "watch":
		return watch(arguments[1])
	case len(arguments) == 2 && arguments[0] == "release":
		return release(arguments[1])
	}
	return errors.New("usage: health ask ARGO FLUX | health test ARGO | health watch LIMIT | health release RELEASE")
}

func ask(argo, flux string) error {
	text, err := os.ReadFile(flux)
	if err != nil {
		return err
	}
	var checks []kustomize.CustomHealthCheck
	if err := yaml.UnmarshalStrict(text, &checks); err != nil {
		return fmt.Errorf("%s: %w", flux, err)
	}
	expressions, err := compiled(checks)
	if err != nil {
		return fmt.Errorf("%s: %w", flux, err)
	}
	return answer(func(object *unstructured.Unstructured) (Answer, error) {
		said, err := of(object, expressions)
		if err != nil {
			return said, err
		}
		if said.Argo, err = argoHealth(object, argo); err != nil {
			return said, fmt.Errorf("argo: %w", err)
		}
		return said, nil
	})
}

// release takes no field that is not of a HelmRelease: the API server would drop it without a word.
func release(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var release helm.HelmRelease
	if err := yaml.UnmarshalStrict(text, &release); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if release.APIVersion != helm.GroupVersion.String() || release.Kind != helm.HelmReleaseKind {
		return fmt.Errorf("%s: %s %s is no HelmRelease of %s", file, release.APIVersion, release.Kind, helm.GroupVersion)
	}
	expressions, err := compiled(release.Spec.HealthCheckExprs)
	if err != nil {
		return fmt.Errorf("%s: spec.healthCheckExprs: %w", file, err)
	}
	return answer(func(object *unstructured.Unstructured) (Answer, error) { return of(object, expressions) })
}

// answer prints what is said of each object on standard input.
func answer(say func(*unstructured.Unstructured) (Answer, error)) error {
	objects, err := given()
	if err != nil {
		return err
	}
	answers := make([]Answer, 0, len(objects))
	for _, object := range objects {
		answer, err := say(&object)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", object.GetKind(), object.GetName(), err)
		}
		answers = append(answers, answer)
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

// given is the object on standard input, or those of the list that is there.
func given() ([]unstructured.Unstructured, error) {
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, err
	}
	var object unstructured.Unstructured
	if err := object.UnmarshalJSON(input); err != nil {
		return nil, err
	}
	if !object.IsList() {
		return []unstructured.Unstructured{object}, nil
	}
	list, err := object.ToList()
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// of is what kstatus says of an object, and Flux where there are expressions for its kind.
func of(object *unstructured.Unstructured, expressions map[string]*cel.StatusEvaluator) (Answer, error) {
	answer := Answer{Kind: object.GetKind(), Name: object.GetName()}
	result, err := status.Compute(object)
	if err != nil {
		return answer, fmt.Errorf("kstatus: %w", err)
	}
	answer.Kstatus = Health{string(result.Status), result.Message}
	evaluator, ok := expressions[object.GetAPIVersion()+"/"+object.GetKind()]
	if !ok {
		return answer, nil
	}
	decided, err := evaluator.Evaluate(context.Background(), object)
	if err != nil {
		return answer, fmt.Errorf("flux: %w", err)
	}
	answer.Flux = Health{string(decided.Status), decided.Message}
	return answer, nil
}

func compiled(checks []kustomize.CustomHealthCheck) (map[string]*cel.StatusEvaluator, error) {
	evaluators := map[string]*cel.StatusEvaluator{}
	for _, check := range checks {
		evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", check.Kind, err)
		}
		evaluators[check.APIVersion+"/"+check.Kind] = evaluator
	}
	return evaluators, nil
}

func argoHealth(object *unstructured.Unstructured, directory string) (Health, error) {
	group := object.GroupVersionKind().Group
	script, err := os.ReadFile(filepath.Join(directory, group, object.GetKind(), "health.lua"))
	if err != nil {
		return Health{}, err
	}
	return runLua(string(script), object)
}

// runLua does as Argo CD's util/lua does: these libraries and no more, "obj" is the object, one second.
func runLua(script string, object *unstructured.Unstructured) (Health, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(library.open), Protect: true}, lua.LString(library.name)); err != nil {
			return Health{}, err
		}
	}
	limited, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(limited)
	encoded, err := object.MarshalJSON()
	if err != nil {
		return Health{}, err
	}
	value, err := luajson.Decode(state, encoded)
	if err != nil {
		return Health{}, err
	}
	state.SetGlobal("obj", value)
	if err := state.DoString(script); err != nil {
		return Health{}, err
	}
	returned := state.Get(-1)
	if returned.Type() != lua.LTTable {
		return Health{}, fmt.Errorf("the script returns a %s, no table", returned.Type())
	}
	said, err := luajson.Encode(returned)
	if err != nil {
		return Health{}, err
	}
	var health Health
	decoder := json.NewDecoder(bytes.NewReader(said))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&health); err != nil {
		return Health{}, fmt.Errorf("the script returns %s: %w", said, err)
	}
	switch health.Status {
	case "Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown":
		return health, nil
	}
	return Health{}, fmt.Errorf("%q is no health of Argo CD", health.Status)
}

// test fails also where a test looks at nothing: a check without tests, an input that no test names.
func test(directory string) error {
	scripts, err := filepath.Glob(filepath.Join(directory, "*", "*", "health.lua"))
	if err != nil {
		return err
	}
	if len(scripts) == 0 {
		return fmt.Errorf("%s has no <group>/<kind>/health.lua", directory)
	}
	var failures []error
	for _, script := range scripts {
		count, err := testKind(filepath.Dir(script))
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", script, err))
			continue
		}
		fmt.Printf("%s: %d tests passed\n", script, count)
	}
	return errors.Join(failures...)
}

func testKind(directory string) (int, error) {
	text, err := os.ReadFile(filepath.Join(directory, "health_test.yaml"))
	if err != nil {
		return 0, err
	}
	var tests struct {
		Tests []struct {
			HealthStatus Health `json:"healthStatus"`
			InputPath    string `json:"inputPath"`
		} `json:"tests"`
	}
	if err := yaml.UnmarshalStrict(text, &tests); err != nil {
		return 0, err
	}
	inputs, err := filepath.Glob(filepath.Join(directory, "testdata", "*.yaml"))
	if err != nil {
		return 0, err
	}
	if len(inputs) == 0 || len(inputs) != len(tests.Tests) {
		return 0, fmt.Errorf("%d tests of %d files in testdata", len(tests.Tests), len(inputs))
	}
	var failures []error
	for _, test := range tests.Tests {
		said, err := healthOfFile(filepath.Join(directory, test.InputPath), directory)
		if err == nil && said != test.HealthStatus {
			err = fmt.Errorf("%+v, expected %+v", said, test.HealthStatus)
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", test.InputPath, err))
		}
	}
	return len(tests.Tests), errors.Join(failures...)
}

func healthOfFile(file, directory string) (Health, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Health{}, err
	}
	var object unstructured.Unstructured
	if err := yaml.UnmarshalStrict(text, &object.Object); err != nil {
		return Health{}, err
	}
	script, err := os.ReadFile(filepath.Join(directory, "health.lua"))
	if err != nil {
		return Health{}, err
	}
	return runLua(string(script), &object)
}
