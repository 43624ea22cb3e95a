package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmp is one connection to QEMU's monitor (QEMU QMP Reference Manual).
type qmp struct {
	connection net.Conn
	mu         sync.Mutex
	next       int
	waiting    map[int]chan qmpAnswer
	events     map[string]int
	changed    *sync.Cond
	closed     bool
}

type qmpAnswer struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Event  string          `json:"event"`
	Data   struct {
		Device string `json:"device"`
	} `json:"data"`
	Error *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func dialQMP(path string) (*qmp, error) {
	connection, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	q := &qmp{connection: connection, waiting: map[int]chan qmpAnswer{}, events: map[string]int{}}
	q.changed = sync.NewCond(&q.mu)
	go q.read()
	_, err = q.run("qmp_capabilities", nil)
	return q, err
}

func (q *qmp) read() {
	lines := bufio.NewScanner(q.connection)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var answer qmpAnswer
		if json.Unmarshal(lines.Bytes(), &answer) != nil {
			continue
		}
		q.mu.Lock()
		if answer.Event != "" {
			q.events[answer.Event+" "+answer.Data.Device]++
			q.changed.Broadcast()
		} else if channel := q.waiting[answer.ID]; channel != nil {
			channel <- answer
			delete(q.waiting, answer.ID)
		}
		q.mu.Unlock()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, channel := range q.waiting {
		close(channel)
	}
	q.waiting = map[int]chan qmpAnswer{}
	q.changed.Broadcast()
}

// qmpTimeout is longer than any command that answers at all.
const qmpTimeout = 60 * time.Second

func (q *qmp) run(execute string, arguments interface{}) (json.RawMessage, error) {
	channel := make(chan qmpAnswer, 1)
	q.mu.Lock()
	q.next++
	message := map[string]interface{}{"execute": execute, "id": q.next}
	if arguments != nil {
		message["arguments"] = arguments
	}
	if q.closed {
		q.mu.Unlock()
		return nil, fmt.Errorf("QEMU has ended before %s", execute)
	}
	q.waiting[q.next] = channel
	text, err := json.Marshal(message)
	if err == nil {
		_, err = q.connection.Write(append(text, '\n'))
	}
	q.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case answer, ok := <-channel:
		if !ok {
			return nil, fmt.Errorf("QEMU ended during %s", execute)
		}
		if answer.Error != nil {
			return nil, fmt.Errorf("%s: %s", execute, answer.Error.Desc)
		}
		return answer.Return, nil
	case <-time.After(qmpTimeout):
		return nil, fmt.Errorf("QEMU does not answer %s", execute)
	}
}

// await waits for an event about a device, such as DEVICE_DELETED.
func (q *qmp) await(event, device string, limit time.Duration) error {
	key := event + " " + device
	late := false
	timer := time.AfterFunc(limit, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		late = true
		q.changed.Broadcast()
	})
	defer timer.Stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.events[key] == 0 {
		if q.closed || late {
			return fmt.Errorf("no %s of %s", event, device)
		}
		q.changed.Wait()
	}
	q.events[key]--
	return nil
}
