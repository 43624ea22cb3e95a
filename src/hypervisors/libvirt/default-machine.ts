import type { ConfigureSpec } from '../port.ts';
import { element } from './xml.ts';
import type { XmlElement } from './xml.ts';

/** For backups of bare disks: a machine that most systems boot on. */
export function defaultMachine(spec: ConfigureSpec): XmlElement {
  const card = element('interface', { type: 'user' }, [element('model', { type: 'virtio' })]);
  const boot = spec.disks.map((disk, index) =>
    element('disk', { type: 'file', device: 'disk' }, [
      element('target', { dev: disk.name, bus: diskBus(disk.name) }),
      element('boot', { order: String(index + 1) }),
    ]),
  );
  return element('domain', { type: 'kvm' }, [
    element('name', {}, [spec.name]),
    element('memory', { unit: 'MiB' }, ['512']),
    element('vcpu', {}, ['1']),
    element('os', {}, [element('type', { arch: 'x86_64', machine: 'pc' }, ['hvm'])]),
    element('features', {}, [element('acpi'), element('apic')]),
    element('on_reboot', {}, ['restart']),
    element('on_crash', {}, ['preserve']),
    element('devices', {}, [
      ...boot,
      element('controller', { type: 'scsi', model: 'virtio-scsi' }),
      card,
      element('serial', { type: 'pty' }, [element('target', { port: '0' })]),
      element('console', { type: 'pty' }, [element('target', { type: 'serial', port: '0' })]),
      element('input', { type: 'tablet', bus: 'usb' }),
      element('graphics', { type: 'vnc', port: '-1', autoport: 'yes', listen: '127.0.0.1' }),
      element('video', {}, [element('model', { type: 'vga', vram: '16384' })]),
    ]),
  ]);
}

function diskBus(name: string): string {
  if (name.startsWith('hd')) return 'ide';
  return name.startsWith('sd') ? 'sata' : 'virtio';
}
