package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// vmx is a machine's configuration file: ordered lines of `key = "value"`.
type vmx struct {
	keys   []string
	values map[string]string
}

var vmxLine = regexp.MustCompile(`^\s*([^#=\s][^=]*?)\s*=\s*"(.*)"\s*$`)

// parseVmx refuses what ESXi would call a corrupt configuration: a line that is none, a key twice.
func parseVmx(text string) (*vmx, error) {
	v := &vmx{values: map[string]string{}}
	for number, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, "\r")
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "#") {
			continue
		}
		match := vmxLine.FindStringSubmatch(line)
		if match == nil {
			return nil, fmt.Errorf("line %d is not a setting", number+1)
		}
		key := strings.ToLower(match[1])
		if _, twice := v.values[key]; twice {
			return nil, fmt.Errorf("line %d: the setting %s is defined already", number+1, match[1])
		}
		v.keys = append(v.keys, match[1])
		v.values[key] = unescape(match[2])
	}
	return v, nil
}

var escaped = regexp.MustCompile(`\|[0-9A-Fa-f]{2}`)

func unescape(value string) string {
	return escaped.ReplaceAllStringFunc(value, func(code string) string {
		number, _ := strconv.ParseUint(code[1:], 16, 8)
		return string([]byte{byte(number)})
	})
}

var special = regexp.MustCompile(`["|\x00-\x1f]`)

func escape(value string) string {
	return special.ReplaceAllStringFunc(value, func(char string) string {
		return fmt.Sprintf("|%02X", char[0])
	})
}

func (v *vmx) get(key string) string { return v.values[strings.ToLower(key)] }

func (v *vmx) is(key string) bool { return strings.EqualFold(v.get(key), "TRUE") }

func (v *vmx) number(key string, otherwise int) int {
	number, err := strconv.Atoi(v.get(key))
	if err != nil {
		return otherwise
	}
	return number
}

func (v *vmx) set(key, value string) {
	lower := strings.ToLower(key)
	if _, known := v.values[lower]; !known {
		v.keys = append(v.keys, key)
	}
	v.values[lower] = value
}

func (v *vmx) remove(key string) {
	lower := strings.ToLower(key)
	delete(v.values, lower)
	for index, each := range v.keys {
		if strings.ToLower(each) == lower {
			v.keys = append(v.keys[:index:index], v.keys[index+1:]...)
			return
		}
	}
}

func (v *vmx) text() string {
	lines := []string{}
	for _, key := range v.keys {
		lines = append(lines, fmt.Sprintf(`%s = "%s"`, key, escape(v.get(key))))
	}
	return strings.Join(lines, "\n") + "\n"
}

// uuid turns `56 4d 12 … - …` into the form of the API; nothing comes of nothing.
func uuid(text string) string {
	digits := strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(text))
	if len(digits) != 32 {
		return ""
	}
	return strings.Join([]string{digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]}, "-")
}

// spaced is uuid's opposite.
func spaced(id string) string {
	digits := strings.ReplaceAll(id, "-", "")
	if len(digits) != 32 {
		return ""
	}
	pairs := []string{}
	for index := 0; index < 32; index += 2 {
		pairs = append(pairs, digits[index:index+2])
	}
	return strings.Join(pairs[:8], " ") + "-" + strings.Join(pairs[8:], " ")
}

// descriptor is what the small file of a disk says.
type descriptor struct {
	text    string
	extent  string
	sectors int64
	uuid    string
}

var (
	extentLine = regexp.MustCompile(`(?m)^RW (\d+) (\w+) "([^"]+)"`)
	uuidLine   = regexp.MustCompile(`(?m)^ddb\.uuid = "([^"]*)"`)
)

// parseDescriptor takes what runs on ESXi: one flat extent on VMFS (or NFS, which says the same).
func parseDescriptor(text string) (*descriptor, error) {
	if !strings.HasPrefix(strings.TrimSpace(text), "# Disk DescriptorFile") {
		return nil, fmt.Errorf("it is not a disk descriptor")
	}
	found := extentLine.FindAllStringSubmatch(text, -1)
	if len(found) != 1 || found[0][2] != "VMFS" || strings.Contains(found[0][3], "/") {
		return nil, fmt.Errorf("it has no single VMFS extent beside it")
	}
	sectors, err := strconv.ParseInt(found[0][1], 10, 64)
	if err != nil {
		return nil, err
	}
	d := &descriptor{text: text, extent: found[0][3], sectors: sectors}
	if id := uuidLine.FindStringSubmatch(text); id != nil {
		d.uuid = uuid(id[1])
	}
	return d, nil
}

// renamed is the descriptor of a copy whose flat file has another name.
func (d *descriptor) renamed(flat string) string {
	line := fmt.Sprintf(`RW %d VMFS "%s"`, d.sectors, flat)
	return extentLine.ReplaceAllLiteralString(d.text, line)
}
