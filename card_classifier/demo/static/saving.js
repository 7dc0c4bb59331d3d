// What one can take along: the photo with its outlines, a table, and many pictures in one file.
(demo => {
  const {canvasOf, jpegOf} = demo;
  const outline = '#ff3d9a';

  const label = (pen, text, x, y, size) => {
    pen.font = `600 ${size}px Georgia, serif`;
    const width = pen.measureText(text).width + size * 0.8;
    const left = Math.min(Math.max(x - width / 2, 2), pen.canvas.width - width - 2);
    const top = Math.min(Math.max(y - size * 0.75, 2), pen.canvas.height - size * 1.5 - 2);
    pen.fillStyle = '#111e';
    pen.beginPath();
    if (pen.roundRect) pen.roundRect(left, top, width, size * 1.5, size * 0.4);
    else pen.rect(left, top, width, size * 1.5);
    pen.fill();
    pen.fillStyle = '#fff';
    pen.textAlign = 'center';
    pen.textBaseline = 'middle';
    pen.fillText(text, left + width / 2, top + size * 0.8);
  };

  // The photo with outlines and names, as a JPEG.
  demo.annotated = async (photo, answer) => {
    const image = await demo.pixels(photo.url);
    const canvas = canvasOf(image.naturalWidth, image.naturalHeight);
    const pen = canvas.getContext('2d');
    pen.drawImage(image, 0, 0);
    const side = Math.max(canvas.width, canvas.height);
    const placed = answer.cards.filter(card => card.corners);
    for (const card of placed) {
      const points = card.corners.map(([x, y]) => [x * canvas.width, y * canvas.height]);
      pen.beginPath();
      points.forEach(([x, y], number) => (number ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.closePath();
      pen.lineJoin = 'round';
      pen.setLineDash(card.is_clear ? [] : [side / 90, side / 120]);
      for (const [colour, width] of [['#fff', side / 180], [card.is_clear ? outline : '#777', side / 280]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width;
        pen.stroke();
      }
    }
    for (const card of placed) {
      const x = card.corners.reduce((sum, [one]) => sum + one, 0) / 4;
      const y = Math.min(...card.corners.map(([, one]) => one));
      label(pen, card.label, x * canvas.width, y * canvas.height, Math.max(14, side / 42));
    }
    return jpegOf(canvas, 0.9);
  };

  demo.download = (blob, name) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  const asFile = (blob, name) => new File([blob], name, {type: blob.type});
  demo.canShare = () => Boolean(navigator.canShare?.({files: [asFile(new Blob([''], {type: 'image/jpeg'}), 'a.jpg')]}));
  demo.share = async (blob, name, text) => {
    try {
      await navigator.share({files: [asFile(blob, name)], text});
    } catch (error) {
      if (error.name !== 'AbortError') demo.download(blob, name);
    }
  };

  // One line of CSV; a text that a table program would take for a formula gets a quotation mark.
  const line = values => values.map(value => {
    const text = typeof value === 'string' && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? '');
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }).join(',');

  // A row for each card; a photo without one has a row, too.
  demo.table = entries => {
    const rows = [['photo', 'file', 'card', 'probability', 'is_clear', 'x1', 'y1', 'x2', 'y2', 'x3', 'y3', 'x4', 'y4', 'seen', 'problem']];
    entries.forEach(({photo, answer}, place) => {
      const start = [place + 1, photo.name];
      for (const card of answer.cards) {
        const corners = card.corners ? card.corners.flat() : Array(8).fill('');
        rows.push([...start, card.card, card.probability, card.is_clear, ...corners, card.seen, '']);
      }
      if (!answer.cards.length) rows.push([...start, ...Array(12).fill(''), answer.title]);
    });
    return new Blob([`\ufeff${rows.map(line).join('\r\n')}\r\n`], {type: 'text/csv'});
  };

  const checksums = Uint32Array.from({length: 256}, (_, start) => {
    let value = start;
    for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
    return value;
  });
  const crc32 = bytes => {
    let value = -1;
    for (const byte of bytes) value = checksums[(value ^ byte) & 255] ^ (value >>> 8);
    return ~value >>> 0;
  };
  const numbers = (...fields) => {
    const bytes = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
    let place = 0;
    for (const [size, value] of fields) {
      if (size === 2) bytes.setUint16(place, value, true);
      else bytes.setUint32(place, value, true);
      place += size;
    }
    return new Uint8Array(bytes.buffer);
  };

  // A ZIP file of files as they are (JPEGs don't get smaller); APPNOTE 6.3, names in UTF-8.
  demo.zipped = async files => {
    const [parts, directory] = [[], []];
    let offset = 0;
    for (const {name, blob} of files) {
      const [bytes, spelled] = [new Uint8Array(await blob.arrayBuffer()), new TextEncoder().encode(name)];
      const [crc, size] = [crc32(bytes), bytes.length];
      const shared = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc], [4, size], [4, size]];
      const head = numbers([4, 0x04034b50], ...shared, [2, spelled.length], [2, 0]);
      const rest = [[2, spelled.length], [2, 0], [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]];
      directory.push(numbers([4, 0x02014b50], [2, 20], ...shared, ...rest), spelled);
      parts.push(head, spelled, bytes);
      offset += head.length + spelled.length + size;
    }
    const length = directory.reduce((sum, part) => sum + part.length, 0);
    const end = numbers([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, length], [4, offset], [2, 0]);
    return new Blob([...parts, ...directory, end], {type: 'application/zip'});
  };
})(window.cardDemo);
