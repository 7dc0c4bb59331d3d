// From a chosen file to what is sent and shown: photos of many megapixels become smaller JPEGs.
(demo => {
  const longestSide = 1600; // Pixels; the networks need fewer
  const smallEnough = 400000; // Bytes; a smaller file is sent as it is

  const isPicture = file => !file.type || file.type.startsWith('image/');

  // A picture that the browser can't read, HEIC for instance, is null.
  const bitmapOf = async blob => {
    try {
      return await createImageBitmap(blob);
    } catch {
      return null;
    }
  };

  const jpegOf = (canvas, quality) => new Promise(done => canvas.toBlob(done, 'image/jpeg', quality));

  const canvasOf = (width, height) => {
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(width));
    canvas.height = Math.max(1, Math.round(height));
    return canvas;
  };

  const reduced = async (file, bitmap) => {
    const scale = Math.min(1, longestSide / Math.max(bitmap.width, bitmap.height));
    const canvas = canvasOf(bitmap.width * scale, bitmap.height * scale);
    const pen = canvas.getContext('2d');
    pen.fillStyle = '#fff';
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const blob = await jpegOf(canvas, 0.9);
    return blob && blob.size < file.size ? blob : file;
  };

  // `content` is sent; `url` shows it, and is null if only the service can read it.
  demo.prepare = async file => {
    const bitmap = file.type.includes('svg') ? null : await bitmapOf(file);
    const content = bitmap && file.size > smallEnough ? await reduced(file, bitmap) : file;
    bitmap?.close();
    return {name: file.name || 'photo', content, url: bitmap ? URL.createObjectURL(content) : null};
  };

  // The pixels of a picture that is shown, to draw from.
  demo.pixels = url => new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = fail;
    image.src = url;
  });

  Object.assign(demo, {isPicture, jpegOf, canvasOf});
})(window.cardDemo);
